"""Attention among the frames of one call, under a mask over frames: one meaning, three backends.

`blocks` computes only what the mask lets through: query frames of equal sight are one call over the frames they see.
`dense` is one call under the mask spread over tokens. `flex` is PyTorch's block-sparse kernel, for accelerators.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.schema import ShapeError

SMALL = 1 << 26  # attention weights that may be kept for the backward pass
ROWS, CACHED = 512, 1 << 24  # queries, and weights, of one product where no gradient is needed
FEW = 64  # queries below which the fused kernel is as fast

AttentionBackend = Literal["auto", "blocks", "dense", "flex"]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v. q: [B, N, Lq, Dh]; k, v: [B, N, Lk, Dh].

    On a CPU the fused kernel is not always the fastest (one core, AVX-512 bf16): its backward is slower than the matrix
    products as long as the weights are few (192 tokens, 64 heads: 36 against 16 ms), and in bf16 it does not use the
    processor's bf16 instructions as these do (1560 tokens, 3 heads of 128: 43 against 23 ms).
    """
    if q.device.type == "cpu":
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            if q[..., 0].numel() * k.shape[2] <= SMALL:
                return _products(q, k, v)
        elif q.dtype == torch.bfloat16 and q.shape[2] >= FEW:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            rows = max(FEW, min(ROWS, CACHED // (q.shape[0] * q.shape[1] * k.shape[2])))
            return torch.cat([_products(some, k, v) for some in q.split(rows, dim=2)], dim=2)
    return F.scaled_dot_product_attention(q, k, v)


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return weights.softmax(dim=-1).to(v.dtype) @ v


class FrameMask:
    """bool [F, F], True where the row's frame sees the column's, as attention over F * S tokens (frame-major)."""

    def __init__(self, visible: Tensor, tokens: int, backend: AttentionBackend = "auto") -> None:
        """tokens: S, of one frame. backend: `auto` is `flex` on CUDA and `blocks` elsewhere."""
        if visible.ndim != 2 or visible.shape[0] != visible.shape[1] or visible.dtype != torch.bool:
            raise ShapeError(f"mask {visible.dtype} {tuple(visible.shape)}: expected bool [F, F] over the frames")
        self.visible, self.tokens, self.backend = visible.cpu(), tokens, backend
        rows = [tuple(row.nonzero().flatten().tolist()) for row in self.visible]
        self.groups = {seen: [i for i, row in enumerate(rows) if row == seen] for seen in dict.fromkeys(rows)}
        self._prepared: dict[torch.device, object] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(Dh)) v over the visible keys. k, v: [B, N, F * S, Dh]; q: the same, or a part of every frame's
        tokens [B, N, F * s, Dh], for which there is `blocks` alone."""
        backend = self.backend if q.shape[2] == k.shape[2] else "blocks"
        if backend == "auto":
            backend = "flex" if q.device.type == "cuda" else "blocks"
        if backend == "blocks":
            return self._blocks(q, k, v)
        return self._dense(q, k, v) if backend == "dense" else self._flex(q, k, v)

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Split once: the gradient of a split is one concatenation, that of every slice a tensor of full size.
        keys, values = (x.split(self.tokens, dim=2) for x in (k, v))
        own = q.shape[2] // len(self.visible)
        queries = q.split(own, dim=2)
        out: list[Tensor] = [q] * len(queries)
        for seen, rows in self.groups.items():
            some = torch.cat([queries[i] for i in rows], dim=2)
            K, V = (torch.cat([x[j] for j in seen], dim=2) for x in (keys, values))
            found = attention(some, K, V).split(own, dim=2)
            for i, piece in zip(rows, found, strict=True):
                out[i] = piece
        return torch.cat(out, dim=2)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.device not in self._prepared:
            self._prepared[q.device] = Visibility.expand(self.visible, self.tokens).to(q.device)
        mask = self._prepared[q.device]
        assert isinstance(mask, Tensor)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

        if q.device not in self._prepared:
            visible, S, L = self.visible.to(q.device), self.tokens, q.shape[2]
            self._prepared[q.device] = create_block_mask(
                lambda b, h, i, j: visible[i // S, j // S], None, None, L, L, device=q.device.type
            )
        mask = self._prepared[q.device]
        assert isinstance(mask, BlockMask)
        out = flex_attention(q, k, v, block_mask=mask)
        assert isinstance(out, Tensor)
        return out
