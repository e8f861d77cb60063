"""Flow matching over whole clips: base pretraining (no camera) and camera fine-tuning of a bidirectional model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldline.functional.flow import add_noise, velocity
from worldline.functional.losses import flow_matching_loss
from worldline.methods.base import Phase, Rng
from worldline.methods.noise import Levels, drawn_index, frame_weights, level_weights, table_levels
from worldline.models.backbone import Backbone
from worldline.rollout.bidirectional import with_given
from worldline.schema import LatentBatch, TextEmbedding


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Bidirectional flow matching (research: Wan stage 0)."""

    use_cameras: bool = True  # off for base pretraining
    shift: float = 5.0  # of the training table
    weighting: str = "gaussian"  # Wan's bell over timesteps, or "uniform"
    levels: Levels = "uniform"  # how indices of the table are drawn; "logit_normal": HunyuanVideo
    image_prob: float = 0.7  # share of samples whose first latent is given clean (image to video)
    text_dropout: float = 0.1  # share of samples trained on the empty prompt, for guidance

    def build(self, model: Backbone, empty: TextEmbedding) -> Finetune:
        """empty: the embedding of the empty prompt [1, L, D]."""
        return Finetune(self, model, empty)


def drop_text(text: TextEmbedding, empty: TextEmbedding, prob: float, rng: torch.Generator) -> TextEmbedding:
    """Replace each sample's prompt by the empty one with probability `prob`; its start image stays."""
    empty = empty.under(text)
    drop = torch.rand(len(text.tokens), generator=rng) < prob
    tokens = torch.where(drop[:, None, None].to(text.tokens.device), empty.tokens, text.tokens)
    return replace(text, tokens=tokens, mask=torch.where(drop[:, None].to(text.mask.device), empty.mask, text.mask))


class Finetune:
    """One network, one phase: every frame of a sample shares a noise level, except a given first frame."""

    def __init__(self, cfg: FinetuneConfig, model: Backbone, empty: TextEmbedding) -> None:
        self.cfg, self.model, self.empty = cfg, model, empty
        self.roles = {"model": model}
        self.phases = (Phase("flow", "model", self.loss),)

    def loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """mean w(t) (v_hat - (eps - x0))^2 over generated frames."""
        x0, cfg = batch.latents, self.cfg
        B, T = x0.shape[:2]
        index = drawn_index((B, 1), cfg.levels, rng.generator("level")).expand(B, T)
        sigma = table_levels(index, cfg.shift).to(x0.device)
        eps = rng.randn_like(x0, "noise")
        x_t = add_noise(x0, eps, sigma)
        image = torch.rand(B, generator=rng.generator("image")) < cfg.image_prob
        given_x, given_sigma = with_given(x_t, sigma, x0[:, :1])
        pick = image.to(x0.device)
        x_t = torch.where(pick[:, None, None, None, None], given_x, x_t)
        sigma = torch.where(pick[:, None], given_sigma, sigma)
        weight = level_weights(index, cfg.shift, cfg.weighting)
        weight = weight * torch.where(image[:, None], frame_weights(T, 1), torch.ones(T))
        text = drop_text(batch.text, self.empty, cfg.text_dropout, rng.generator("text")).blind(~image)
        v = self.model(x_t, sigma, self.model.text_context(text), cameras=batch.cameras if cfg.use_cameras else None)
        return {"loss": flow_matching_loss(v, velocity(x0, eps), weight.to(x0.device))}

    def after_step(self, step: int) -> None:
        """Nothing moves beside the model."""
