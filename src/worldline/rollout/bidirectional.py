"""A whole clip at once: multi-step sampling of the bidirectional model, with its first latent given or not."""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.functional.flow import cfg
from worldline.models.backbone import Backbone, TextContext
from worldline.rollout.denoise import denoise
from worldline.rollout.plan import RolloutPlan
from worldline.schema import Cameras, TextEmbedding


def with_given(x: Tensor, sigma: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """Put clean latents in front: x [B, T, C, H, W] and sigma [B, T] with the first frames given and at sigma 0."""
    if given is None:
        return x, sigma
    n = given.shape[1]
    return torch.cat([given, x[:, n:]], dim=1), torch.cat([torch.zeros_like(sigma[:, :n]), sigma[:, n:]], dim=1)


@torch.no_grad()
def sample(
    model: Backbone,
    plan: RolloutPlan,
    noise: Tensor,
    text: TextEmbedding,
    *,
    negative: TextEmbedding | None = None,
    cameras: Cameras | None = None,
    given: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """noise: [B, T, C, H, W] -> x0 of the clip; `given` [B, n, C, H, W] are clean first latents (image to video).

    With guidance the conditional and the unconditional pass run as one batch of 2 B.
    """
    guided = plan.guidance != 1.0 and negative is not None
    context = model.text_context(text)
    if guided and negative is not None:
        context = TextContext.cat([context, model.text_context(negative.under(text))])
        cameras = None if cameras is None else cameras.tile(batch=2)

    def predict(x: Tensor, sigma: float) -> Tensor:
        x, levels = with_given(x, x.new_full(x.shape[:2], sigma), given)
        if not guided:
            return model(x, levels, context, cameras=cameras)
        v = model(x.repeat(2, 1, 1, 1, 1), levels.repeat(2, 1), context, cameras=cameras)
        cond, uncond = v.chunk(2)
        return cfg(uncond, cond, plan.guidance)

    x0 = denoise(plan, noise, predict, generator=generator)
    return x0 if given is None else torch.cat([given, x0[:, given.shape[1] :]], dim=1)
