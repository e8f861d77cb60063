"""What a turn of the camera does to the picture, whatever the depth."""

from __future__ import annotations

import torch
from torch import Tensor


def turning_field(turn: Tensor, K: Tensor, height: int, width: int) -> Tensor:
    """Where a view sees what another view, `turn` radians further to the left, saw: displacement [..., 2, height, width].

    turn: [...], positive to the right; K: [4] normalised fx, fy, cx, cy with a centred principal point. A point at (X, Y, 1)
    was at R(turn) (X, Y, 1) before; the displacement is in shares of half the picture, x then y, as `grid_sample` counts.
    """
    gx = (torch.arange(width, device=turn.device) + 0.5) / width * 2 - 1
    gy = ((torch.arange(height, device=turn.device) + 0.5) / height * 2 - 1)[:, None]
    X, angle = gx / (2 * K[0]), turn[..., None, None]
    depth = angle.cos() - X * angle.sin()
    x = 2 * K[0] * (X * angle.cos() + angle.sin()) / depth - gx
    return torch.stack([x.expand(*turn.shape, height, width), gy / depth - gy], dim=-3)


def yaw_of(c2w: Tensor) -> Tensor:
    """Heading of cameras c2w [..., 4, 4] in a world with z up, in radians, positive to the right; any constant offset."""
    return -torch.atan2(c2w[..., 1, 2], c2w[..., 0, 2]).float()
