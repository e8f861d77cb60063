"""Keys and values of the clean past, in two makes with one interface.

Invariants (both makes):
- `frames` latent frames are committed; entries hold detached keys and values of committed frames only, except the ring
  slots of the chunk being denoised, which `commit` overwrites before anyone else may read them.
- Who a chunk sees is `Visibility.visible_frames`, never decided here; all layers and streams share one cursor, a Python
  integer, so a forward never waits for the device.
- Keys are stored after RoPE (absolute latent index) and, for camera streams, in the world frame: an entry depends on its
  own frame alone and is never touched again, except by `transform` when the world is re-anchored and, in a ring, by `turn`
  where a policy moves positions.
- Frames recalled from beyond the window are kept elsewhere (`rollout.memory`) and shown through `remember`, from the next
  pass on, beside the visible history.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.schema import WorldlineError

Stream = tuple[int, str]  # (layer, "main" or "camera")
KeysValues = Mapping[Stream, tuple[Tensor, Tensor]]  # [B, N, L, Dh] each


class KVCache(ABC):
    """`attend` returns the keys and values the current chunk may see: visible history, then itself."""

    def __init__(self, visibility: Visibility) -> None:
        self.visibility, self.frames, self.writing = visibility, 0, False

    def history(self, n: int) -> list[int]:
        """Committed latent frames visible to a chunk of `n` frames that follows them."""
        return [f for f in self.visibility.visible_frames(self.frames, self.frames + n) if f < self.frames]

    @abstractmethod
    def attend(self, stream: Stream, k: Tensor, v: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """k, v: [B, N, n * S, Dh] of the current chunk of n frames -> keys and values [B, N, L, Dh] to attend to."""

    def advance(self, n: int) -> None:
        """Close a commit of `n` frames; every layer has been written by now."""
        self.frames += n

    def remember(self, recalled: KeysValues, frames: int) -> None:
        """Let what follows also see so many frames with these keys and values, in place of those remembered before."""
        raise WorldlineError(f"a {type(self).__name__} has no memory; expected a ring or blocks")

    @abstractmethod
    def fork(self) -> KVCache:
        """An independent cache of the same contents."""

    @abstractmethod
    def transform(self, fn: Callable[[Stream, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Replace every stored (k, v) by fn(stream, k, v), for re-anchoring the world."""


class BlockCache(KVCache):
    """Immutable, detached blocks, one per latent frame: safe where gradients run (training rollouts)."""

    def __init__(self, visibility: Visibility) -> None:
        super().__init__(visibility)
        self._blocks: dict[Stream, tuple[tuple[Tensor, Tensor], ...]] = {}
        self._recalled: KeysValues = {}

    def attend(self, stream: Stream, k: Tensor, v: Tensor, n: int) -> tuple[Tensor, Tensor]:
        blocks = self._blocks.get(stream, ())
        past = [blocks[f] for f in self.history(n)]
        if stream in self._recalled:
            past.append(self._recalled[stream])
        if self.writing:
            own = tuple(zip(k.detach().chunk(n, dim=2), v.detach().chunk(n, dim=2), strict=True))
            self._blocks[stream] = blocks[: self.frames] + own
        if not past:
            return k, v
        return torch.cat([*(p[0] for p in past), k], dim=2), torch.cat([*(p[1] for p in past), v], dim=2)

    def remember(self, recalled: KeysValues, frames: int) -> None:
        """See KVCache."""
        self._recalled = recalled

    def fork(self) -> BlockCache:
        other = BlockCache(self.visibility)
        other.frames, other._blocks = self.frames, dict(self._blocks)  # blocks are immutable: sharing them is a copy
        other._recalled = self._recalled
        return other

    def transform(self, fn: Callable[[Stream, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self._blocks = {s: tuple(fn(s, k, v) for k, v in blocks) for s, blocks in self._blocks.items()}
        self._recalled = {s: fn(s, k, v) for s, (k, v) in self._recalled.items()}


class FrameCache(KVCache):
    """The keys and values of one latent frame that is encoded alone; a value, but for `transform`."""

    def __init__(self) -> None:
        super().__init__(Visibility())
        self.writing = True
        self.blocks: dict[Stream, tuple[Tensor, Tensor]] = {}

    def attend(self, stream: Stream, k: Tensor, v: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The frame sees itself."""
        self.blocks[stream] = (k.detach(), v.detach())
        return k, v

    def rows(self, batch: slice) -> FrameCache:
        """Of some samples."""
        other = FrameCache()
        other.blocks = {s: (k[batch], v[batch]) for s, (k, v) in self.blocks.items()}
        return other

    def fork(self) -> FrameCache:
        return self.rows(slice(None))

    def transform(self, fn: Callable[[Stream, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.blocks = {s: fn(s, k, v) for s, (k, v) in self.blocks.items()}


class RingCache(KVCache):
    """Static buffers for streaming: `sink` slots, a ring of `window` slots, then `memory` slots, written in place.

    Frame f >= sink lives in ring slot (f - sink) mod window. The chunk being denoised is written to the slots of exactly
    those frames that its own window evicts, so what a chunk may see is always a contiguous prefix of the buffer: no
    concatenation, no roll, no mask (the order of keys does not matter to softmax). Frames are remembered once the ring is full,
    and seen by passes that see a full ring.
    """

    def __init__(self, visibility: Visibility, capacity: int | None = None, memory: int = 0) -> None:
        super().__init__(visibility)
        window = visibility.window if visibility.window is not None else capacity
        if window is None:
            raise WorldlineError(
                "a ring cache needs a bound: give Visibility a window, or the cache a capacity in frames"
            )
        if window < max(visibility.chunk, visibility.prefix):
            raise WorldlineError(
                f"window of {window} latent frames is shorter than a chunk of {visibility.chunk} or a prefix of "
                f"{visibility.prefix}; expected a window of at least the longer of the two"
            )
        self.window, self.memory, self.remembered = window, memory, 0
        self._k: dict[Stream, Tensor] = {}
        self._v: dict[Stream, Tensor] = {}
        self._slots: dict[int, Tensor] = {}  # by their number: a recorded pass reads them where they were
        self._placed: tuple[Tensor, int] | None = None
        self._gap = 0  # frames after the sinks that were never written here
        self._written: dict[Stream, Tensor] = {}  # keys as they were written, from the first time they are turned

    def history(self, n: int) -> list[int]:
        first = self.visibility.sink + self._gap
        return [f for f in super().history(n) if f < self.visibility.sink or f >= first]

    def restart(self, frame: int) -> None:
        """Forget all but the sinks; what is written next is latent frame `frame`. Raises WorldlineError where sinks are
        still to come."""
        if self.frames < self.visibility.sink or frame < self.frames:
            raise WorldlineError(
                f"restart at latent frame {frame} with {self.frames} committed and {self.visibility.sink} sinks; expected "
                "every sink to be committed, and a frame that follows"
            )
        self.frames, self._gap = frame, frame - self.visibility.sink

    def _slot(self, frame: int) -> int:
        sink = self.visibility.sink
        return frame if frame < sink else sink + (frame - sink - self._gap) % self.window

    def _visible(self, n: int) -> int:
        """Frames that n frames about to be written will see, themselves included: the first so many of the buffer."""
        end, sink = self.frames + n, self.visibility.sink
        if self.visibility.window is None and end > self.window + sink:
            raise WorldlineError(
                f"latent frame {end - 1} exceeds the cache's capacity of {self.window} frames; give Visibility a window"
            )
        found = min(end, sink) + min(max(end - sink - self._gap, 0), self.window)
        if not self.memory:  # asked apart: a graph of a ring without memory is one for all that it sees
            return found
        return found + self.remembered if found == sink + self.window else found

    def full(self, n: int) -> bool:
        """Whether n frames to come see as many as any later ones will, in buffers that are there."""
        return bool(self._k) and self._visible(n) == self.capacity

    @property
    def capacity(self) -> int:
        """Frames there is room for."""
        return self.visibility.sink + self.window + self.memory

    def remember(self, recalled: KeysValues, frames: int) -> None:
        """See KVCache; at most `memory` frames."""
        if frames > self.memory:
            raise WorldlineError(f"{frames} frames to remember in {self.memory} slots; expected no more than slots")
        self.remembered = 0  # until all are there
        for stream, (k, v) in recalled.items():
            at = (self.visibility.sink + self.window) * (k.shape[2] // frames)
            self._k[stream][:, :, at : at + k.shape[2]] = k
            self._v[stream][:, :, at : at + v.shape[2]] = v
        self.remembered = frames

    @contextmanager
    def placed(self, n: int, S: int, device: torch.device) -> Iterator[int]:
        """Within it, the n frames of S tokens to come are written where a tensor says, not where host integers do: a pass
        recorded in it may be replayed in it for any later chunk that sees as many frames (the value given)."""
        runs = [torch.arange(S, device=device) + self._slot(self.frames + i) * S for i in range(n)]
        slots, visible = torch.cat(runs), self._visible(n)
        self._placed = (self._slots.setdefault(n * S, slots.clone()).copy_(slots), visible)
        try:
            yield visible
        finally:
            self._placed = None

    def attend(self, stream: Stream, k: Tensor, v: Tensor, n: int) -> tuple[Tensor, Tensor]:
        B, N, L, Dh = k.shape
        S = L // n
        if stream not in self._k:
            room = self.capacity * S
            self._k[stream], self._v[stream] = k.new_zeros(B, N, room, Dh), v.new_zeros(B, N, room, Dh)
        K, V = self._k[stream], self._v[stream]
        if self._placed is not None:
            slots, visible = self._placed
            K.index_copy_(2, slots, k)
            V.index_copy_(2, slots, v)
            return K[:, :, : visible * S], V[:, :, : visible * S]
        seen = self._visible(n) * S
        for i in range(n):
            at = self._slot(self.frames + i) * S
            K[:, :, at : at + S] = k[:, :, i * S : (i + 1) * S]
            V[:, :, at : at + S] = v[:, :, i * S : (i + 1) * S]
        return K[:, :, :seen], V[:, :, :seen]

    def fork(self, copies: int = 1) -> RingCache:
        """An independent cache of the same contents; with `copies`, of so many continuations as one batch [copies * B]."""
        other = RingCache(self.visibility, self.window, self.memory)
        other.frames, other._gap, other.remembered = self.frames, self._gap, self.remembered
        other._k, other._v, other._written = (
            {s: t.clone() if copies == 1 else t.repeat(copies, *[1] * (t.ndim - 1)) for s, t in held.items()}
            for held in (self._k, self._v, self._written)
        )
        return other

    def transform(self, fn: Callable[[Stream, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        for stream, K in self._k.items():
            V = self._v[stream]
            k, v = fn(stream, K, V)
            K.copy_(k)  # in place: a recorded pass knows their addresses
            V.copy_(v)
        for stream, written in self._written.items():
            flat = written.flatten(2, 3)
            self._written[stream] = fn(stream, flat, flat)[0].view(written.shape)

    def turn(self, fn: Callable[[Stream, Tensor], Tensor]) -> None:
        """Replace the keys of the window by fn(stream, k), k [B, N, window, S, Dh] by slots, as they were written: turned
        anew each time, they do not gather rounding. Sinks stay."""
        for stream, K in self._k.items():
            sink = self.visibility.sink
            window = K.unflatten(2, (self.capacity, -1))[:, :, sink : sink + self.window]
            if stream not in self._written:
                self._written[stream] = window.clone()
            window.copy_(fn(stream, self._written[stream]))

    def slot(self, frame: int) -> int:
        """Which slot of the window holds latent frame `frame`, not a sink."""
        return self._slot(frame) - self.visibility.sink

    def advance(self, n: int) -> None:
        for stream, written in self._written.items():
            by_slot = self._k[stream].unflatten(2, (self.capacity, -1))
            for slot in (self.slot(self.frames + i) for i in range(n)):
                written[:, :, slot] = by_slot[:, :, self.visibility.sink + slot]
        super().advance(n)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.nbytes for held in (self._k, self._v, self._written) for t in held.values())

    @property
    def finite(self) -> bool:
        """Whether all keys and values are. Waits for the device."""
        return all(bool(torch.isfinite(t).all()) for held in (self._k, self._v, self._written) for t in held.values())
