"""Who sees whom, said once: a `Visibility` is rendered as a mask, or asked by a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.schema import WorldlineError


@dataclass(frozen=True)
class Visibility:
    """The temporal visibility of latent frames.

    Frames form chunks: the first `prefix` frames (if any) are a chunk of their own, then `chunk` frames each. A frame sees
    its own chunk, and history frame j iff j is within the last `window` frames counted to its chunk's end (the chunk
    included; None: all) or j < sink. `bidirectional`: everything sees everything.
    """

    chunk: int = 1
    window: int | None = None
    sink: int = 0
    bidirectional: bool = False
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.sink < 0 or self.prefix < 0 or (self.window is not None and self.window < 1):
            raise WorldlineError(f"{self}: expected chunk >= 1, sink >= 0, prefix >= 0 and window >= 1 (or None)")

    def chunk_bounds(self, frame: int) -> tuple[int, int]:
        """Half-open [start, stop) of the chunk that holds a frame."""
        if frame < self.prefix:
            return 0, self.prefix
        start = self.prefix + (frame - self.prefix) // self.chunk * self.chunk
        return start, start + self.chunk

    def chunk_index(self, T: int) -> Tensor:
        """Chunk number of every frame, [T]."""
        t = torch.arange(T)
        later = torch.div(t - self.prefix, self.chunk, rounding_mode="floor") + (1 if self.prefix else 0)
        return torch.where(t < self.prefix, 0, later)

    def visible_frames(self, query_start: int, query_stop: int) -> list[int]:
        """Frames the chunk [query_start, query_stop) may see, itself included: the cache's answer."""
        oldest = 0 if self.window is None else query_stop - self.window
        return [j for j in range(query_stop) if j >= query_start or j < self.sink or j >= oldest]

    def frame_mask(self, T: int) -> Tensor:
        """bool [T, T], True where row (query) sees column (key), over clean frames."""
        if self.bidirectional:
            return torch.ones(T, T, dtype=torch.bool)
        mask = torch.zeros(T, T, dtype=torch.bool)
        for i in range(T):
            start, stop = self.chunk_bounds(i)
            mask[i, [j for j in self.visible_frames(start, stop) if j < T]] = True
        return mask

    def teacher_forcing_mask(self, T: int) -> Tensor:
        """bool [2T, 2T] over [clean | noisy]: clean sees clean as above; a noisy chunk sees clean history strictly before
        it, by the same rule, and itself."""
        clean = self.frame_mask(T)
        index = self.chunk_index(T)
        own = torch.ones(T, T, dtype=torch.bool) if self.bidirectional else index[:, None] == index[None, :]
        history = clean & ~own
        return torch.cat([torch.cat([clean, torch.zeros_like(own)], 1), torch.cat([history, own], 1)], 0)

    @staticmethod
    def expand(mask: Tensor, tokens_per_frame: int) -> Tensor:
        """Frame mask [..., F, F] -> token mask [..., F S, F S], frame-major."""
        return mask.repeat_interleave(tokens_per_frame, -2).repeat_interleave(tokens_per_frame, -1)
