"""Attention among the frames of one call, under a mask over frames: one meaning, three backends.

`blocks` computes only what the mask lets through: query frames of equal sight are one call over the frames they see.
`dense` is one call under the mask spread over tokens. `flex` is PyTorch's block-sparse kernel, for accelerators.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Always:
    """Keys and values that every query sees beside its own frames', such as a prompt's. k, v: [B, N, L, Dh]; valid: bool
    [B, L], False where a key is padding; None where none is."""

    k: Tensor
    v: Tensor
    valid: Tensor | None = None

    def before(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """These keys and values, then k and v [B, N, Lk, Dh]."""
        return torch.cat([self.k.to(k.dtype), k], dim=2), torch.cat([self.v.to(v.dtype), v], dim=2)

    def known(self) -> Tensor:
        """bool [B, L]: what may be attended to."""
        return self.k.new_ones(len(self.k), self.k.shape[2], dtype=torch.bool) if self.valid is None else self.valid

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q K^T / sqrt(Dh)) V over these and all of k, v [B, N, Lk, Dh]."""
        K, V = self.before(k, v)
        if self.valid is None:
            return attention(q, K, V)
        mask = F.pad(self.valid, (0, k.shape[2]), value=True)[:, None, None]
        return F.scaled_dot_product_attention(q, K, V, attn_mask=mask)


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
        self._prepared: dict[object, object] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, always: Always | None = None) -> Tensor:
        """softmax(q k^T / sqrt(Dh)) v over the visible keys and those `always` seen. All [B, N, F * S, Dh]."""
        backend = self.backend
        if backend == "auto":
            backend = "flex" if q.device.type == "cuda" else "blocks"
        if backend == "blocks":
            return self._blocks(q, k, v, always)
        return self._dense(q, k, v, always) if backend == "dense" else self._flex(q, k, v, always)

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor, always: Always | None) -> Tensor:
        # Split once: the gradient of a split is one concatenation, that of every slice a tensor of full size.
        keys, values = (x.split(self.tokens, dim=2) for x in (k, v))
        own = q.shape[2] // len(self.visible)
        queries = q.split(own, dim=2)
        out: list[Tensor] = [q] * len(queries)
        over = attention if always is None else always.attend
        for seen, rows in self.groups.items():
            some = torch.cat([queries[i] for i in rows], dim=2)
            K, V = (torch.cat([x[j] for j in seen], dim=2) for x in (keys, values))
            for i, piece in zip(rows, over(some, K, V).split(own, dim=2), strict=True):
                out[i] = piece
        return torch.cat(out, dim=2)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, always: Always | None) -> Tensor:
        if q.device not in self._prepared:
            self._prepared[q.device] = Visibility.expand(self.visible, self.tokens).to(q.device)
        mask = self._prepared[q.device]
        assert isinstance(mask, Tensor)
        if always is not None:
            known = always.known()[:, None, None].expand(-1, -1, len(mask), -1)
            mask = torch.cat([known, mask.expand(len(q), 1, -1, -1)], dim=-1)
            k, v = always.before(k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, always: Always | None) -> Tensor:
        from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

        ahead = 0 if always is None else always.k.shape[2]
        valid = None if always is None else always.valid
        if (q.device, ahead) not in self._prepared or valid is not None:
            visible, S, L = self.visible.to(q.device), self.tokens, q.shape[2]

            def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                own = (j >= ahead) & visible[i // S, (j - ahead).clamp(min=0) // S]
                return own | ((j < ahead) if valid is None else (j < ahead) & valid[b, j.clamp(max=ahead - 1)])

            batch = None if valid is None else len(q)
            self._prepared[q.device, ahead] = create_block_mask(sees, batch, None, L, ahead + L, device=q.device.type)
        mask = self._prepared[q.device, ahead]
        assert isinstance(mask, BlockMask)
        out = flex_attention(q, *(k, v) if always is None else always.before(k, v), block_mask=mask)
        assert isinstance(out, Tensor)
        return out
