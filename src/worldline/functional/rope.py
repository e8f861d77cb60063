"""Rotary positions over (time, row, column), positions as data (Wan: complex pairs split t : h : w)."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_angles(pos: Tensor, head_dim: int, theta: float = 1e4) -> tuple[Tensor, Tensor]:
    """pos: [L, 3] (t, y, x) -> (cos, sin), fp32 [L, head_dim / 2], angles formed in float64.

    Of d2 = head_dim / 2 complex pairs, d2 - 2 (d2 // 3) turn with time, d2 // 3 each with row and column; pair i of an axis
    with n pairs has frequency theta^(-i / n).
    """
    d2 = head_dim // 2
    sizes = (d2 - 2 * (d2 // 3), d2 // 3, d2 // 3)
    parts = []
    for axis, n in enumerate(sizes):
        freq = theta ** (-torch.arange(n, dtype=torch.float64, device=pos.device) / max(n, 1))
        parts.append(pos[:, axis, None].double() * freq)
    angle = torch.cat(parts, dim=-1)
    return angle.cos().float(), angle.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [B, L, N, Dh] by cos, sin [L, Dh / 2], in fp32; returns x's type.

    A pair is a complex number and the rotation one product, which is thirty times as fast on a CPU as strided real
    arithmetic; compilers fuse the latter and know no complex numbers.
    """
    pairs, cos, sin = x.float().unflatten(-1, (-1, 2)), cos[:, None], sin[:, None]
    if torch.compiler.is_compiling():
        a, b = pairs.unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
