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


@dataclass(frozen=True)
class CameraMatrices:
    """Per latent frame, [B, T, Dh, Dh] each: what queries, keys and values, and outputs are multiplied by (on the right).

    P (image from world) acts on every group of four of the head dims that carry the camera, the identity on the rest:
    q P, k P^-T, v P^-T, o P^T, so that attention sees q_i^T P_i P_j^-1 k_j and hands out P_i P_j^-1 v_j.
    """

    query: Tensor
    key: Tensor
    out: Tensor

    @staticmethod
    def from_cameras(cameras: Cameras, head_dim: int, share: int) -> CameraMatrices:
        """share: head dims that carry the camera, a multiple of four. Formed in fp32, whatever the compute type, and
        handed out in it, so that no layer converts them again."""
        device = cameras.w2c.device.type
        half = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else torch.float32
        with torch.autocast(device, enabled=False):
            P, P_inv = projection_matrices(cameras.w2c.float(), cameras.K.float())
            spread = partial(block_diagonal, head_dim=head_dim, share=share)
            return CameraMatrices(*(spread(M).to(dtype) for M in (P, P_inv.mT, P.mT)))


def block_diagonal(matrix: Tensor, head_dim: int, share: int) -> Tensor:
    """matrix [..., 4, 4] -> [..., Dh, Dh]: `share / 4` copies along the diagonal, then ones."""
    carrying = torch.arange(head_dim // 4, device=matrix.device) < share // 4  # [G]
    identity = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    blocks = torch.where(carrying, matrix[..., None], identity[..., None])  # [..., 4, 4, G]
    return torch.diag_embed(blocks).movedim((-4, -3), (-3, -1)).flatten(-2).flatten(-3, -2)


def act(x: Tensor, matrix: Tensor) -> Tensor:
    """x [B, T * S, N, Dh] times matrix [B, T, Dh, Dh], frame by frame, in x's type (the matrices are formed in fp32)."""
    B, T = matrix.shape[:2]
    rows = x.reshape(B * T, -1, x.shape[-1])  # all tokens and heads of a frame
    return torch.bmm(rows, matrix.flatten(0, 1).to(x.dtype)).view(x.shape)
