"""Rectified flow: x_t = (1 - sigma) x0 + sigma eps, velocity = eps - x0, and the noise grids of the Wan family.

sigma is [B, T], one noise level per latent frame, for latents [B, T, C, H, W]; a model's own clock is 1000 sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _frames(sigma: Tensor, like: Tensor) -> Tensor:
    """sigma [B, T] -> broadcastable over latents [B, T, C, H, W]."""
    return sigma.reshape(*sigma.shape, *([1] * (like.ndim - sigma.ndim)))


def shift(sigma: Tensor, k: float) -> Tensor:
    """Time shift k s / (1 + (k - 1) s) (SD3, arXiv:2403.03206, eq. 23): k > 1 spends more steps at high noise."""
    return k * sigma / (1 + (k - 1) * sigma)


def add_noise(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """x_t = (1 - sigma) x0 + sigma eps."""
    s = _frames(sigma, x0)
    return (1 - s) * x0 + s * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """dx_t / dsigma = eps - x0."""
    return eps - x0


def velocity_to_x0(x_t: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x_t - sigma v."""
    return x_t - _frames(sigma, x_t) * v


def x0_to_velocity(x_t: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """v = (x_t - x0) / sigma; sigma must be positive."""
    return (x_t - x0) / _frames(sigma, x_t)


def training_sigmas(n: int = 1000, k: float = 5.0) -> Tensor:
    """The training table s_i = shift_k(1 - i / n), i = 0..n-1, descending from 1; fp32 [n] from float64."""
    return shift(1 - torch.arange(n, dtype=torch.float64) / n, k).float()


def sampling_sigmas(steps: int, k: float = 5.0) -> Tensor:
    """The sampling grid s_i = shift_k(1 - i / steps), i = 0..steps, from 1 down to 0; fp32 [steps + 1]."""
    return shift(1 - torch.arange(steps + 1, dtype=torch.float64) / steps, k).float()


def few_step_sigmas(raw: tuple[int, ...] = (1000, 750, 500, 250), k: float = 5.0) -> Tensor:
    """The few-step student's levels: raw timesteps of a 1000-step clock, shifted. (1, .9375, .83333, .625) by default."""
    return shift(torch.tensor(raw, dtype=torch.float64) / 1000, k).float()


def gaussian_time_weight(n: int = 1000, k: float = 5.0) -> Tensor:
    """Wan's training weight over the table: exp(-2 ((t - 500) / 1000)^2), less its minimum, scaled to mean 1; [n]."""
    t = 1000 * shift(1 - torch.arange(n, dtype=torch.float64) / n, k)
    w = torch.exp(-2 * ((t - 500) / 1000) ** 2)
    w = w - w.min()
    return (w / w.mean()).float()


def cfg(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance u + scale (c - u) (arXiv:2207.12598); scale 1 is the conditional prediction."""
    return uncond + scale * (cond - uncond)
