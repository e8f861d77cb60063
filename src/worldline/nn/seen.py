"""Self-attention's sight: the one place where masks, caches and shared tokens meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline import dist
from worldline.nn.attention import Always, FrameMask, attention
from worldline.nn.camera import CameraMatrices
from worldline.nn.kv_cache import KVCache, Stream
from worldline.nn.ulysses import divides_heads, every_token, heads_for_tokens, tokens_for_heads


@dataclass(frozen=True)
class Seen:
    """What the current tokens may attend to: a mask over frames, or a cache of the past, or (neither) each other."""

    frames: int
    cameras: CameraMatrices | None
    camera_tokens: Tensor | None = None  # [B * T, 4, D], each frame's own
    mask: FrameMask | None = None
    cache: KVCache | None = None

    def attend(self, stream: Stream, q: Tensor, k: Tensor, v: Tensor, always: Always | None = None) -> Tensor:
        """softmax(q k^T / sqrt(Dh)) v over the visible keys and those `always` seen (of all heads). All [B, L, N, Dh]."""
        shared = dist.sequence() > 1
        by_heads = shared and divides_heads(q.shape[-2])
        if by_heads:
            q, k, v = tokens_for_heads(torch.stack([q, k, v]), self.frames).unbind(0)
        elif shared:
            k, v = every_token(torch.stack([k, v]), self.frames).unbind(0)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.cache is not None:
            k, v = self.cache.attend(stream, k, v, self.frames)
        if always is not None and by_heads:
            always = Always(dist.own_tokens(always.k, 1), dist.own_tokens(always.v, 1), always.valid)
        if self.mask is not None:
            out = self.mask.attend(q, k, v, always)
        else:
            out = attention(q, k, v) if always is None else always.attend(q, k, v)
        out = out.transpose(1, 2)
        return heads_for_tokens(out, self.frames) if by_heads else out
