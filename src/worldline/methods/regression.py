"""Regression on real data, beside a loss that only seeks modes: a term that any method with a causal student can add.

Distribution matching minimises a reverse divergence, content with a few modes done well. E |x0_hat(x_s) - x0|^2 on real clips is
the forward divergence of a Gaussian model of x0 given x_s, which pays for every clip it cannot explain (research: BiWM's
`real forward-KL`). Its best answer is a mean, so a large weight blurs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.functional.flow import add_noise, velocity_to_x0
from worldline.functional.losses import regression_loss
from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.models.backbone import Backbone
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import LatentBatch


def real_regression(
    model: Backbone, batch: LatentBatch, visibility: Visibility, levels: tuple[float, ...], rng: Rng
) -> Tensor:
    """mean (x0_hat(x_s; true past) - x0)^2 over generated frames, s one of `levels` a chunk; pure noise (1.0) is left out
    where there are others, as the best answer to it is one mean for all clips of a prompt."""
    x0, given = batch.latents, visibility.prefix
    B, T = x0.shape[:2]
    informed = torch.tensor([s for s in levels if s < 1.0] or levels)
    chunk = visibility.chunk_index(T)
    draw = torch.randint(len(informed), (B, int(chunk.max()) + 1), generator=rng.generator("regression level"))
    sigma = informed[draw[:, chunk]].to(x0.device)
    x = add_noise(x0, rng.randn_like(x0, "regression noise"), sigma)
    context = model.text_context(batch.text)
    v = teacher_forced_velocity(model, x0, x, sigma, context, cameras=batch.cameras, visibility=visibility)
    return regression_loss(velocity_to_x0(x, v, sigma)[:, given:], x0[:, given:])
