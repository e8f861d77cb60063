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

    def of(self, batch: slice) -> Always:
        """Those of some samples."""
        return Always(self.k[batch], self.v[batch], None if self.valid is None else self.valid[batch])

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
    """bool [F, F], True where the row's frame sees the column's, as attention over F * S tokens (frame-major); or [B, F, F],
    one for each sample."""

    def __init__(self, visible: Tensor, tokens: int, backend: AttentionBackend = "auto") -> None:
        """tokens: S, of one frame. backend: `auto` is `flex` on CUDA and `blocks` elsewhere."""
        if visible.ndim not in (2, 3) or visible.shape[-1] != visible.shape[-2] or visible.dtype != torch.bool:
            raise ShapeError(
                f"mask {visible.dtype} {tuple(visible.shape)}: expected bool [F, F] or [B, F, F] over the frames"
            )
        self.visible, self.tokens, self.backend = visible.cpu(), tokens, backend
        # By whose rows (None: those of all samples) and what is seen, the rows.
        self.groups: dict[tuple[int | None, tuple[int, ...]], list[int]] = {}
        each = self.visible if visible.ndim == 3 else self.visible[None]
        for i, alike in enumerate((each == each[:1]).all(dim=(0, 2)).tolist()):
            for b in range(1 if alike else len(each)):
                seen = tuple(each[b, i].nonzero().flatten().tolist())
                self.groups.setdefault((None if alike else b, seen), []).append(i)
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
        own = q.shape[2] // self.visible.shape[-1]
        queries = q.split(own, dim=2)
        out: list[dict[int, Tensor]] = [{} for _ in queries]  # by row, then by sample
        for (sample, seen), rows in self.groups.items():
            Q, K, V = ([x[i] for i in some] for x, some in ((queries, rows), (keys, seen), (values, seen)))
            beside = always
            if sample is not None:
                one = slice(sample, sample + 1)
                Q, K, V = ([x[one] for x in parts] for parts in (Q, K, V))
                beside = None if always is None else always.of(one)
            over = attention if beside is None else beside.attend
            found = over(torch.cat(Q, dim=2), torch.cat(K, dim=2), torch.cat(V, dim=2))
            for i, piece in zip(rows, found.split(own, dim=2), strict=True):
                out[i][sample or 0] = piece
        whole = [row[0] if len(row) == 1 else torch.cat([row[b] for b in sorted(row)]) for row in out]
        return torch.cat(whole, dim=2)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, always: Always | None) -> Tensor:
        if q.device not in self._prepared:
            spread = Visibility.expand(self.visible, self.tokens).to(q.device)
            self._prepared[q.device] = spread if spread.ndim == 2 else spread[:, None]
        mask = self._prepared[q.device]
        assert isinstance(mask, Tensor)
        if always is not None:
            known = always.known()[:, None, None].expand(-1, -1, mask.shape[-1], -1)
            mask = torch.cat([known, mask.expand(len(q), 1, -1, -1)], dim=-1)
            k, v = always.before(k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, always: Always | None) -> Tensor:
        from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

        ahead = 0 if always is None else always.k.shape[2]
        valid = None if always is None else always.valid
        if (q.device, ahead) not in self._prepared or valid is not None:
            visible, S, L = self.visible.to(q.device), self.tokens, q.shape[2]
            each = visible.ndim == 3

            def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                row, column = i // S, (j - ahead).clamp(min=0) // S
                own = (j >= ahead) & (visible[b, row, column] if each else visible[row, column])
                return own | ((j < ahead) if valid is None else (j < ahead) & valid[b, j.clamp(max=ahead - 1)])

            batch = len(q) if each or valid is not None else None
            self._prepared[q.device, ahead] = create_block_mask(sees, batch, None, L, ahead + L, device=q.device.type)
        mask = self._prepared[q.device, ahead]
        assert isinstance(mask, BlockMask)
        out = flex_attention(q, *(k, v) if always is None else always.before(k, v), block_mask=mask)
        assert isinstance(out, Tensor)
        return out
