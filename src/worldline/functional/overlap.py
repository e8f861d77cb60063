"""How much of what one camera sees another one sees too: the share of a frustum that lies in another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.functional.camera import invert_se3

STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)  # 1 / g, 1 / g^2, 1 / g^3 with g^4 = g + 1
PAIRS = 1 << 12  # pairs of cameras that are compared at a time, for little memory


def spread_points(n: int) -> Tensor:
    """n points of the unit cube, float64 [n, 3], spread evenly and always the same: the additive recurrence of the generalised
    golden ratio (Roberts 2018). Their share in a box is its volume up to O(log n / n)."""
    index = torch.arange(1, n + 1, dtype=torch.float64)[:, None]
    return (0.5 + index * torch.tensor(STEPS, dtype=torch.float64)) % 1.0


def frustum_points(K: Tensor, near: float, far: float, n: int) -> Tensor:
    """Points that a camera sees, in its own axes: K [..., 4] normalised fx, fy, cx, cy -> float64 [..., n, 3], even over the
    picture and over depths from near to far."""
    u, v, depth = spread_points(n).to(K.device).unbind(-1)
    z = near + (far - near) * depth
    fx, fy, cx, cy = K.double()[..., None, :].unbind(-1)
    return torch.stack([(u - cx) / fx * z, (v - cy) / fy * z, z.expand_as(u - cx)], dim=-1)


def fov_overlap(
    w2c: Tensor, K: Tensor, others: Tensor, other_K: Tensor, *, near: float, far: float, points: int = 256
) -> Tensor:
    """The share of each camera's frustum that each other camera has in its picture, no farther than `far`.

    w2c: [Q, 4, 4], K: [Q, 4]; others: [N, 4, 4], other_K: [N, 4] -> float64 [Q, N] in [0, 1], multiples of 1 / points. near,
    far: depths in the units of the poses, of which the overlap is a function only through |translation| / far and near / far:
    scale them with the poses. Walls are not known. Not symmetric: who stands back sees what is before him, and more.

    By points (WorldPlay takes random ones): the same cameras always have the same overlap.
    """
    seen = F.pad(frustum_points(K, near, far, points), (0, 1), value=1.0)  # [Q, P, 4]
    fx, fy, cx, cy = other_K.double().unbind(-1)
    none, one = torch.zeros_like(fx), torch.ones_like(fx)
    # (z u, z v, z) of a point in another camera's picture
    lens = torch.stack([torch.stack(row, -1) for row in ((fx, none, cx), (none, fy, cy), (none, none, one))], dim=-2)
    into = lens @ (others.double()[None] @ invert_se3(w2c.double())[:, None])[..., :3, :]  # [Q, N, 3, 4]
    found = [_share_inside(some, seen, far) for some in into.split(max(1, PAIRS // max(len(w2c), 1)), dim=1)]
    return torch.cat(found, dim=1)


def _share_inside(into: Tensor, seen: Tensor, far: float) -> Tensor:
    """into: [Q, N, 3, 4]; seen: [Q, P, 4] -> [Q, N]."""
    zu, zv, z = (into.flatten(1, 2) @ seen.mT).unflatten(1, (-1, 3)).unbind(2)  # [Q, N, P] each
    inside = (zu >= 0) & (zu <= z) & (zv >= 0) & (zv <= z) & (z > 0) & (z <= far)  # 0 <= u, v <= 1, nothing divided
    return inside.sum(dim=-1).double() / seen.shape[1]
