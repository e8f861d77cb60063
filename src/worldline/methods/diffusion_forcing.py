"""Diffusion forcing (arXiv:2407.01392): every chunk has a noise level of its own and sees the past at the past's levels.

One pass over T frames where teacher forcing takes 2 T; the model learns to go on from any mixture of clean and noisy past.
Worlds stream over a clean past, which independent levels almost never show, so a share of samples is trained on just that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.functional.flow import add_noise, velocity
from worldline.functional.losses import flow_matching_loss
from worldline.functional.masks import Visibility
from worldline.methods.base import Phase, Rng
from worldline.methods.finetune import drop_text
from worldline.methods.noise import level_weights, per_chunk_index, table_levels
from worldline.models.backbone import Backbone
from worldline.nn.attention import FrameMask
from worldline.schema import LatentBatch, TextEmbedding, WorldlineError


@dataclass(frozen=True, kw_only=True)
class DiffusionForcingConfig:
    """AR diffusion with independent noise levels."""

    shift: float = 5.0  # of the training table
    weighting: str = "gaussian"  # Wan's bell over timesteps, or "uniform"
    clean_past: float = 0.25  # share of samples whose chunks before a random one are clean, as they are in a stream
    text_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.clean_past <= 1:
            raise WorldlineError(f"clean_past is {self.clean_past}; expected a share from 0 to 1")

    def build(self, model: Backbone, visibility: Visibility, empty: TextEmbedding) -> DiffusionForcing:
        """visibility: chunk, window, sink, prefix of the world to be; empty: the empty prompt [1, L, D]."""
        return DiffusionForcing(self, model, visibility, empty)


def clean_before(batch: int, frames: int, visibility: Visibility, share: float, rng: torch.Generator) -> Tensor:
    """bool [B, T]: frames that are clean. The given prefix always is; in a `share` of samples, all before a random chunk."""
    chunk = visibility.chunk_index(frames)
    first, last = int(visibility.prefix > 0), int(chunk.max())
    start = torch.randint(first, last + 1, (batch, 1), generator=rng)
    picked = torch.rand(batch, 1, generator=rng) < share
    return chunk < torch.where(picked, start, first)


class DiffusionForcing:
    """One network, one phase; frames that are clean are not scored."""

    def __init__(
        self, cfg: DiffusionForcingConfig, model: Backbone, visibility: Visibility, empty: TextEmbedding
    ) -> None:
        self.cfg, self.model, self.visibility, self.empty = cfg, model, visibility, empty
        self.roles = {"model": model}
        self.phases = (Phase("flow", "model", self.loss),)

    def loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """mean w(t) (v_hat_i(x_1^t1 .. x_i^ti) - (eps_i - x0_i))^2 over noisy frames (Algorithm 1, as flow matching)."""
        x0, cfg, visibility = batch.latents, self.cfg, self.visibility
        B, T = x0.shape[:2]
        index = per_chunk_index(B, T, visibility, rng.generator("level"))
        clean = clean_before(B, T, visibility, cfg.clean_past, rng.generator("clean past"))
        sigma = table_levels(index, cfg.shift).masked_fill(clean, 0.0).to(x0.device)
        eps = rng.randn_like(x0, "noise")
        text = drop_text(batch.text, self.empty, cfg.text_dropout, rng.generator("text"))
        v = self.model(
            add_noise(x0, eps, sigma),
            sigma,
            self.model.text_context(text),
            cameras=batch.cameras,
            mask=FrameMask(visibility.frame_mask(T), self.model.tokens_per_frame(*x0.shape[-2:])),
        )
        weight = level_weights(index, cfg.shift, cfg.weighting) * ~clean
        return {
            "loss": flow_matching_loss(v, velocity(x0, eps), (weight * clean.numel() / (~clean).sum()).to(x0.device))
        }

    def after_step(self, step: int) -> None:
        """Nothing moves beside the model."""
