"""Sequence parallel attention (DeepSpeed-Ulysses, arXiv:2309.14509): between blocks a process has some tokens of every
frame and all heads, within attention all tokens and some heads.

Where the heads do not divide, keys and values of all tokens are gathered instead, and each process attends with its own
queries: more traffic, and a cache of whole keys and values on every process, for any number of heads.

Cutting each frame, not the clip, leaves frames whole everywhere: masks over frames, [clean | noisy] halves, per-frame
modulation and cameras work as on one process, and a cache of keys and values holds this process's heads alone.
"""

from __future__ import annotations

from torch import Tensor

from worldline import dist


def tokens_for_heads(x: Tensor, frames: int) -> Tensor:
    """[..., L / sp, N, Dh], own tokens of all heads -> [..., L, N / sp, Dh], frame-major as without sharing."""
    x = x.unflatten(-3, (frames, -1))  # [..., F, S / sp, N, Dh]
    return dist.swap(x, x.ndim - 2, x.ndim - 3).flatten(-5, -3)  # senders come side by side behind the frames


def heads_for_tokens(x: Tensor, frames: int) -> Tensor:
    """The way back: [..., L, N / sp, Dh] -> [..., L / sp, N, Dh]."""
    x = x.unflatten(-3, (frames, -1))  # [..., F, S, N / sp, Dh]
    return dist.swap(x, x.ndim - 3, x.ndim - 2).flatten(-3, -2).flatten(-4, -3)


def divides_heads(heads: int) -> bool:
    """Whether attention can be shared by heads: else queries alone are."""
    return heads % dist.sequence() == 0


def every_token(x: Tensor, frames: int) -> Tensor:
    """[..., L / sp, N, Dh], keys or values of own tokens -> [..., L, N, Dh], of all, frame-major."""
    x = x.unflatten(-3, (frames, -1))  # [..., F, S / sp, N, Dh]
    return dist.everyones_tokens(x, x.ndim - 3).flatten(-4, -3)
