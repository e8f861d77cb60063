"""PRoPE as an injector: camera matrices act on queries, keys, values and outputs of attention (arXiv:2507.10496).

`branch`: a second attention whose every group of four head dims carries the camera, with a zero-initialised output
projection (minWM). `fused`: inside the one attention the camera acts on a share of each head's dims, after RoPE, so that
identical cameras (P_i P_j^-1 = I) leave the pretrained attention exactly as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worldline.functional.prope import projection_matrices
from worldline.schema import Cameras

FEW = 1 << 16  # numbers of a frame below which cutting off the dims that stay costs more than multiplying them by one


@dataclass(frozen=True)
class CameraMatrices:
    """Per latent frame, [B, T, Dc, Dc] each: what queries, keys and values, and outputs are multiplied by (on the right).

    P (image from world) acts on every group of four of the first Dc dims of a head, which carry the camera:
    q P, k P^-T, v P^-T, o P^T, so that attention sees q_i^T P_i P_j^-1 k_j and hands out P_i P_j^-1 v_j.
    """

    query: Tensor
    key: Tensor
    out: Tensor

    @staticmethod
    def from_cameras(cameras: Cameras, share: int, head_dim: int, rows: int) -> CameraMatrices:
        """share: head dims that carry the camera, a multiple of four; rows: tokens times heads of a frame. Dc is `share`, or all
        of `head_dim` (ones on the dims that stay) where there are few. Formed in fp32, whatever the compute type, and handed
        out in it, so that no layer converts them again."""
        device = cameras.w2c.device.type
        half = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else torch.float32
        size = head_dim if rows * head_dim < FEW else share
        with torch.autocast(device, enabled=False):
            P, P_inv = projection_matrices(cameras.w2c.float(), cameras.K.float())
            spread = partial(block_diagonal, share=share, size=size)
            return CameraMatrices(*(spread(M).to(dtype) for M in (P, P_inv.mT, P.mT)))


def block_diagonal(matrix: Tensor, share: int, size: int | None = None) -> Tensor:
    """matrix [..., 4, 4] -> [..., size, size]: `share / 4` copies along the diagonal, then ones (size None: none)."""
    size = size or share
    copies = matrix[..., None].expand(*matrix.shape, share // 4)  # [..., 4, 4, G]
    if size > share:
        ones = torch.eye(4, dtype=matrix.dtype, device=matrix.device)[..., None]
        rest = ones.expand(*matrix.shape, (size - share) // 4)
        copies = torch.cat([copies, rest], dim=-1)
    return torch.diag_embed(copies).movedim((-4, -3), (-3, -1)).flatten(-2).flatten(-3, -2)


def act(x: Tensor, matrix: Tensor) -> Tensor:
    """x [B, T * S, N, Dh] times matrix [B, T, Dc, Dc], frame by frame, in x's type (the matrices are formed in fp32). The
    dims of a head past the first Dc stay."""
    B, T, share = matrix.shape[:3]
    rows = x.reshape(B * T, -1, x.shape[-1])  # all tokens and heads of a frame
    matrices = matrix.flatten(0, 1).to(x.dtype)
    if share == x.shape[-1]:
        return torch.bmm(rows, matrices).view(x.shape)
    return torch.cat([torch.bmm(rows[..., :share], matrices), rows[..., share:]], dim=-1).view(x.shape)
