"""PRoPE camera matrices (arXiv:2507.10496; the variant minWM trains: all dims carry the camera)."""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.functional.camera import invert_se3


def projection_matrices(w2c: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """P = lift(diag(fx, fy, 1)) w2c and its exact inverse, fp32.

    w2c: [..., 4, 4]; K: [..., 4] normalised fx, fy, cx, cy (the principal point is not used: it would couple to the
    patch position, which RoPE carries). Attention sees q_i^T P_i P_j^-1 k_j: only relative cameras.
    """
    w2c, K = w2c.float(), K.float()
    ones = torch.ones_like(K[..., 0])
    lift = torch.stack([K[..., 0], K[..., 1], ones, ones], dim=-1)
    return lift[..., :, None] * w2c, invert_se3(w2c) / lift[..., None, :]


def apply_groups(M: Tensor, x: Tensor) -> Tensor:
    """M [B, L, 4, 4] acts on every group of four dims of x [B, N, L, Dh], token by token."""
    groups = x.unflatten(-1, (-1, 4))  # [B, N, L, G, 4]
    return torch.einsum("blij,bnlgj->bnlgi", M.to(x.dtype), groups).flatten(-2)
