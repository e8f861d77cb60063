"""Losses of the whole chain as functions of tensors; every mean is taken in fp32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalizer = Literal["per_sample", "global", "none"]


def flow_matching_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """mean(w (v_hat - v)^2). pred, target: [B, T, C, H, W]; weight: [B, T], one a latent frame (0 leaves a frame out,
    weights are not renormalised)."""
    error = (pred.float() - target.float()).square().mean(dim=(2, 3, 4))  # [B, T]
    return error.mean() if weight is None else (weight * error).mean()


def regression_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, in x0 space for the causal-ODE and consistency students."""
    return (pred.float() - target.float()).square().mean()


def dmd_gradient(fake: Tensor, real: Tensor, generated: Tensor, normalizer: Normalizer = "per_sample") -> Tensor:
    """(x0_fake - x0_real) / mean|x_gen - x0_real| (DMD, arXiv:2311.18828, eq. 8; DMD2's x0 form). All [B, T, C, H, W].

    per_sample: one mean a sample, clamped at 1e-8; global: one mean for the batch; none: no division. Non-finite -> 0.
    """
    grad = fake.float() - real.float()
    gap = (generated.float() - real.float()).abs()
    if normalizer == "per_sample":
        grad = grad / gap.mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-8)
    elif normalizer == "global":
        grad = grad / gap.mean()
    return torch.nan_to_num(grad)


def dmd_surrogate(generated: Tensor, grad: Tensor) -> Tensor:
    """0.5 mean (x - sg(x - g))^2, whose gradient with respect to x is g / numel."""
    target = (generated.detach().double() - grad.double()).detach()
    return 0.5 * (generated.double() - target).square().mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (E max(0, 1 - D(real)) + E max(0, 1 + D(fake))) of logits of any shape (arXiv:1705.02894, eq. 16)."""
    return 0.5 * ((1 - real.float()).clamp_min(0).mean() + (1 + fake.float()).clamp_min(0).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-E D(fake) of logits of any shape (arXiv:1705.02894, eq. 17)."""
    return -fake.float().mean()


def surrogate(x: Tensor, grad: Tensor, value: Tensor) -> Tensor:
    """A loss of value `value` whose gradient with respect to x is `grad`: for a term whose own graph is already gone."""
    along = (x * grad.detach()).sum()
    return value.detach() + along - along.detach()
