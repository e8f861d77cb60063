"""Rotary positions over (time, row, column), positions as data (Wan: complex pairs split t : h : w)."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_angles(
    pos: Tensor, head_dim: int, theta: float = 1e4, sizes: tuple[int, int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """pos: [L, 3] (t, y, x) -> (cos, sin), fp32 [L, head_dim / 2], angles formed in float64.

    Of d2 = head_dim / 2 complex pairs, `sizes` turn with time, row and column: unless given, d2 - 2 (d2 // 3) and d2 // 3
    each; pair i of an axis with n pairs has frequency theta^(-i / n).
    """
    d2 = head_dim // 2
    sizes = sizes or (d2 - 2 * (d2 // 3), d2 // 3, d2 // 3)
    parts = []
    for axis, n in enumerate(sizes):
        freq = theta ** (-torch.arange(n, dtype=torch.float64, device=pos.device) / max(n, 1))
        parts.append(pos[:, axis, None].double() * freq)
    angle = torch.cat(parts, dim=-1)
    return angle.cos().float(), angle.sin().float()


def rope_of_grid(
    positions: Tensor,
    rows: int,
    cols: int,
    head_dim: int,
    *,
    device: torch.device,
    theta: float = 1e4,
    sizes: tuple[int, int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """positions: latent index of every frame [T] -> (cos, sin) of T rows cols tokens, frame-major, on `device`."""
    # Angles are formed where the model is, as a copy from the host would wait for it; `mps` has no float64.
    where = torch.device("cpu") if device.type == "mps" else device
    t = positions.to(where, torch.float64, non_blocking=True)
    y, x = (torch.arange(n, dtype=t.dtype, device=where) for n in (rows, cols))
    grid = torch.stack(torch.meshgrid(t, y, x, indexing="ij"), dim=-1)
    cos, sin = rope_angles(grid.flatten(0, 2), head_dim, theta, sizes)
    return cos.to(device), sin.to(device)


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
