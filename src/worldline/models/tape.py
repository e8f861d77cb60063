"""How a causal network runs over a stream: what each layer saw last is a value that goes in and comes out changed."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor

Memory = tuple[Tensor, ...]  # last frames seen by every layer with a reach in time, in the order the layers run


class Tape:
    """One pass over the next frames of a stream: plays back what each layer saw last, records what it sees now."""

    def __init__(self, memory: Memory | None) -> None:
        self.first = memory is None  # the pass opens the clip
        self._past = iter(memory or ())
        self._seen: list[Tensor] = []

    def past(self) -> Tensor | None:
        """The frames the calling layer saw last; None where the pass opens the clip."""
        return None if self.first else next(self._past)

    def keep(self, frames: Tensor) -> None:
        """Store the last frames of the calling layer: a copy, since a slice would hold on to the whole activation."""
        self._seen.append(frames.clone())

    def memory(self) -> Memory:
        """What the next pass needs."""
        return tuple(self._seen)


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A 2D layer on every frame of [B, C, T, H, W]."""
    return rearrange(layer(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=x.shape[0])
