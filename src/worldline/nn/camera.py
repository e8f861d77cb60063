"""PRoPE as an injector: camera matrices act on queries, keys, values and outputs of attention (arXiv:2507.10496).

`branch`: a second attention whose every group of four head dims carries the camera, with a zero-initialised output
projection (minWM). `fused`: inside the one attention the camera acts on a share of each head's dims, after RoPE, so that
identical cameras (P_i P_j^-1 = I) leave the pretrained attention exactly as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.functional.prope import projection_matrices
from worldline.schema import Cameras


@dataclass(frozen=True)
class CameraMatrices:
    """Per latent frame, fp32 [B, T, 4, 4]: P (image from world), its transpose for queries and its inverse for keys."""

    P: Tensor
    P_inv: Tensor

    @staticmethod
    def from_cameras(cameras: Cameras) -> CameraMatrices:
        """Computed once per forward in fp32, whatever the compute type."""
        with torch.autocast(cameras.w2c.device.type, enabled=False):
            P, P_inv = projection_matrices(cameras.w2c.float(), cameras.K.float())
        return CameraMatrices(P, P_inv)

    def repeat_frames(self, times: int) -> CameraMatrices:
        """The same cameras for every half of [clean | noisy] frames."""
        return CameraMatrices(self.P.repeat(1, times, 1, 1), self.P_inv.repeat(1, times, 1, 1))


def act(matrix: Tensor, x: Tensor, share: int | None = None) -> Tensor:
    """Apply matrix [B, T, 4, 4] to every group of four head dims of x [B, N, T * S, Dh], frame by frame.

    share: act on the first `share` dims alone (a multiple of four), pass the rest through. Raises nothing: shapes are the
    model's own. The product runs in x's type; the matrices are formed in fp32.
    """
    B, N, L, Dh = x.shape
    T = matrix.shape[1]
    d = Dh if share is None else share
    part = x[..., :d].reshape(B, N, T, (L // T) * (d // 4), 4)
    out = (part @ matrix.transpose(-1, -2).to(x.dtype)[:, None]).reshape(B, N, L, d)
    return out if d == Dh else torch.cat([out, x[..., d:]], dim=-1)
