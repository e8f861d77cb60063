"""Teacher-forced autoregressive training: every chunk is denoised against the true past, in one masked pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.functional.flow import add_noise, velocity
from worldline.functional.losses import flow_matching_loss
from worldline.functional.masks import Visibility
from worldline.methods.base import Phase, Rng
from worldline.methods.finetune import drop_text
from worldline.methods.noise import Levels, drawn_index, frame_weights, level_weights, per_chunk_index, table_levels
from worldline.models.backbone import Backbone
from worldline.rollout.history import HistoryPolicy
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import LatentBatch, TextEmbedding


@dataclass(frozen=True, kw_only=True)
class TeacherForcingConfig:
    """AR diffusion with teacher forcing (research: Wan stage 1)."""

    shift: float = 5.0
    weighting: str = "gaussian"
    levels: Levels = "uniform"  # how indices of the table are drawn; "logit_normal": HunyuanVideo
    noise_scope: str = "per_chunk"  # or "per_sample" (HunyuanVideo line of minWM)
    context_noise: float = 0.0  # clean halves are noised to U(0, this), so that the model forgives its own past
    text_dropout: float = 0.1

    def build(
        self, model: Backbone, visibility: Visibility, empty: TextEmbedding, history: HistoryPolicy | None = None
    ) -> TeacherForcing:
        """visibility: chunk, window, sink, prefix of the world to be; empty: the empty prompt [1, L, D]; history: what its
        chunks recall from beyond the window."""
        return TeacherForcing(self, model, visibility, empty, history)


class TeacherForcing:
    """One network, one phase; the noisy half alone is scored, given prefix frames are not."""

    def __init__(
        self,
        cfg: TeacherForcingConfig,
        model: Backbone,
        visibility: Visibility,
        empty: TextEmbedding,
        history: HistoryPolicy | None = None,
    ) -> None:
        self.cfg, self.model, self.visibility, self.empty = cfg, model, visibility, empty
        self.history = history
        self.roles = {"model": model}
        self.phases = (Phase("flow", "model", self.loss),)

    def loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """mean w(t) (v_hat - (eps - x0))^2 over the chunks to be generated."""
        x0, cfg = batch.latents, self.cfg
        B, T = x0.shape[:2]
        if cfg.noise_scope == "per_chunk":
            index = per_chunk_index(B, T, self.visibility, rng.generator("level"), cfg.levels)
        else:
            index = drawn_index((B, 1), cfg.levels, rng.generator("level")).expand(B, T)
        sigma = table_levels(index, cfg.shift).to(x0.device)
        eps = rng.randn_like(x0, "noise")
        clean, sigma_clean = x0, None
        if cfg.context_noise > 0:
            level = torch.rand(B, 1, generator=rng.generator("context level")) * cfg.context_noise
            sigma_clean = level.expand(B, T).to(x0.device)
            clean = add_noise(x0, rng.randn_like(x0, "context noise"), sigma_clean)
        text = drop_text(batch.text, self.empty, cfg.text_dropout, rng.generator("text"))
        v = teacher_forced_velocity(
            self.model,
            clean,
            add_noise(x0, eps, sigma),
            sigma,
            self.model.text_context(text),
            cameras=batch.cameras,
            visibility=self.visibility,
            sigma_clean=sigma_clean,
            history=self.history,
        )
        weight = level_weights(index, cfg.shift, cfg.weighting) * frame_weights(T, self.visibility.prefix)
        return {"loss": flow_matching_loss(v, velocity(x0, eps), weight.to(x0.device))}

    def after_step(self, step: int) -> None:
        """Nothing moves beside the model."""
