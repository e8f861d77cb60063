"""Layers shared by backbones: sinusoidal clock, RMS norm over the full width, feed-forward, pre-norm modulation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(timestep: Tensor, dim: int) -> Tensor:
    """[cos | sin] of t * 10000^(-i / (dim/2)), fp32. timestep: [...] on the model's clock (1000 sigma) -> [..., dim]."""
    half = dim // 2
    freq = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angle = timestep.float()[..., None] * freq
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in fp32. Wan norms queries and keys over all heads together."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> Tensor:
    """LN(x) factor + shift in fp32, without affine. x: [B, T, S, D]; shift, factor: [B, T, 1, D], one a frame."""
    return torch.addcmul(shift, F.layer_norm(x.float(), x.shape[-1:], eps=eps), factor)


class PatchEmbedding(nn.Conv3d):
    """A convolution whose stride is its kernel, 1 x ph x pw, as the one matrix product that it is."""

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, C, H, W] -> [B, T, S, D], S = (H / ph) (W / pw) tokens a frame, row by row."""
        _, ph, pw = self.kernel_size
        rows = x.unflatten(-1, (-1, pw)).unflatten(-3, (-1, ph))  # [B, T, C, H / ph, ph, W / pw, pw]
        patches = rows.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class GELUProjection(nn.Module):
    """Linear then tanh-GELU, under the published key name `proj`."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Linear, tanh-GELU, Linear, with the published key names net.0.proj and net.2."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GELUProjection(dim, inner), nn.Identity(), nn.Linear(inner, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TwoLayer(nn.Module):
    """linear_1, activation, linear_2: Wan's time and text embedders."""

    def __init__(self, dim_in: int, dim: int, activation: str) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim_in, dim), nn.Linear(dim, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear_1(x)
        return self.linear_2(F.silu(h) if self.activation == "silu" else F.gelu(h, approximate="tanh"))


class AdaNorm(nn.Module):
    """LayerNorm without affine whose shifts, scales and gates come from the clock: only their projection has weights."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, parts * dim)
        self.parts = parts

    def forward(self, clock: Tensor) -> tuple[Tensor, ...]:
        """clock: [..., D] fp32 -> `parts` vectors [..., 1, D] in fp32."""
        return self.linear(F.silu(clock)).float().unsqueeze(-2).chunk(self.parts, dim=-1)
