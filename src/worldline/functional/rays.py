"""Pluecker coordinates of viewing rays: the camera as a picture (Sitzmann et al. 2021, arXiv:2106.02634)."""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.functional.camera import invert_se3


def plucker_rays(w2c: Tensor, K: Tensor, rows: int, cols: int) -> Tensor:
    """w2c [B, T, 4, 4], K [B, T, 4] normalised fx, fy, cx, cy -> (d, o x d) of the ray through the centre of every cell
    of a rows x cols grid, [B, T, 6, rows, cols]; d has unit length, o is the camera's centre in the world frame."""
    c2w, (fx, fy, cx, cy) = invert_se3(w2c), K[..., None, None].unbind(2)  # [B, T, 1, 1] each
    u = ((torch.arange(cols, device=K.device) + 0.5) / cols - cx) / fx  # [B, T, 1, cols]
    v = ((torch.arange(rows, device=K.device) + 0.5) / rows - cy.mT) / fy.mT  # [B, T, 1, rows]
    u, v = u.expand(-1, -1, rows, -1), v.mT.expand(-1, -1, -1, cols)
    d = torch.nn.functional.normalize(torch.stack([u, v, torch.ones_like(u)], dim=2), dim=2)
    d = torch.einsum("btij,btjhw->btihw", c2w[..., :3, :3], d)
    o = c2w[..., :3, 3, None, None].expand_as(d)
    return torch.cat([d, torch.linalg.cross(o, d, dim=2)], dim=2)
