"""The one chunk loop: training rollouts, AR sampling, evaluation and live streaming all step this class.

A chunk is denoised against the cached clean past, handed out, and only then committed (one clean pass at sigma 0 that
writes its keys and values), so that a viewer never waits for the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from worldline.functional.flow import cfg
from worldline.models.backbone import Backbone, TextContext
from worldline.nn.attention import FrameMask
from worldline.nn.kv_cache import BlockCache, KVCache, RingCache
from worldline.rollout.denoise import denoise
from worldline.rollout.memory import Memory
from worldline.rollout.plan import RolloutPlan
from worldline.rollout.positions import carried_by, check_policy, shift_at, turn_window
from worldline.schema import Cameras, TextEmbedding, WorldlineError

LEVELS = 8  # noise levels whose conditions are held at a time: all of a few-step plan, little memory of a long one


@dataclass(frozen=True)
class _Ready:
    """Conditions of one chunk by noise level; None where the backbone has none."""

    start: int
    shape: torch.Size
    cameras: Cameras | None
    levels: dict[float, Any]

    def serves(self, start: int, shape: torch.Size, cameras: Cameras | None) -> bool:
        """Whether they are those of this chunk, under these very cameras."""
        return self.start == start and self.shape == shape and self.cameras is cameras


@dataclass(frozen=True)
class _Clean:
    """Latents that were committed together, of which frames are still in sight."""

    start: int
    x0: Tensor  # [B, n, C, H, W]
    cameras: Cameras | None
    shift: int  # by how much its positions lay before its indices when it was written

    @property
    def stop(self) -> int:
        return self.start + self.x0.shape[1]


class ChunkLoop:
    """State of one rollout: the prompt's keys and values and the clean past (a second one under guidance)."""

    def __init__(
        self,
        model: Backbone,
        plan: RolloutPlan,
        text: TextEmbedding,
        *,
        negative: TextEmbedding | None = None,
        cache: Literal["blocks", "ring"] = "blocks",
        capacity: int | None = None,
        chunkwise: bool = False,
    ) -> None:
        """text: [B] prompts; negative: the unconditional prompt, needed where plan.guidance != 1, which sees the start images
        of `text`; capacity: latent frames a ring cache holds where the plan's visibility has no window; chunkwise: backward
        keeps a chunk's latents alone and takes its forward again when its turn comes, so that one chunk's activations are
        alive at a time."""
        self.model, self.plan = model, plan
        self._stream, self._chunkwise = cache == "ring", chunkwise
        self._ready: _Ready | None = None
        self._copies = 1  # of one walk, in this batch: they draw the same noise
        self._past: tuple[_Clean, ...] = ()  # of a stream: the clean latents whose keys and values are in sight
        self._shift = 0  # by how much the window's positions lie before its indices
        check_policy(model, plan.positions)
        if plan.positions != "absolute" and not self._stream:
            raise WorldlineError(f"positions {plan.positions!r}; expected cache='ring', where frames can be moved")
        if plan.guidance != 1.0 and negative is None:
            raise WorldlineError(f"guidance {plan.guidance} needs a negative prompt; pass negative=, or set guidance 1")
        prompts = [text] if plan.guidance == 1.0 or negative is None else [text, negative.under(text)]
        # Training rollouts let the prompt's keys and values learn; a stream has nothing to learn.
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache == "blocks"):
            self._texts: list[TextContext] = [model.text_context(p) for p in prompts]
        self._caches: list[KVCache] = [
            BlockCache(plan.visibility)
            if cache == "blocks"
            else RingCache(plan.visibility, capacity, 0 if plan.history is None else plan.history.slots)
            for _ in prompts
        ]
        self.memory = None if plan.history is None else Memory(plan.history, plan.visibility)

    @property
    def frames(self) -> int:
        """Latent frames committed so far."""
        return self._caches[0].frames

    @property
    def nbytes(self) -> int:
        """Bytes of a stream's keys and values."""
        return sum(cache.nbytes for cache in self._caches if isinstance(cache, RingCache))

    @property
    def finite(self) -> bool:
        """Whether a stream's keys and values all are. Waits for the device."""
        return all(cache.finite for cache in self._caches if isinstance(cache, RingCache))

    def denoise(
        self,
        noise: Tensor,
        cameras: Cameras | None,
        *,
        generator: torch.Generator | None = None,
        exit_step: int | None = None,
        grad: bool = False,
    ) -> Tensor:
        """noise: [B, n, C, H, W] of the next n latent frames -> their x0. Never writes the cache."""

        self._ready = None  # weights may have changed since
        self._place(noise.shape[1])
        self._recall(noise.shape[1], cameras)
        return denoise(
            self.plan,
            noise,
            lambda x, sigma: self._guided(x, sigma, cameras),
            generator=generator,
            exit_step=exit_step,
            grad=grad,
            copies=self._copies,
        )

    @torch.no_grad()
    def open(
        self, x0: Tensor, noise: Tensor, cameras: Cameras | None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Commit the given first latents x0 [B, m, C, H, W] and denoise the first chunk, noise [B, n, C, H, W], under the
        cameras of all m + n: what `commit` and `denoise` do, but in a stream the chunk's first step and the clean pass
        are one pass, in which x0 does not see the chunk. The first frame of a world comes a pass sooner."""
        m, frames = x0.shape[1], x0.shape[1] + noise.shape[1]
        given, own = (None, None) if cameras is None else (cameras[:m], cameras[m:])
        visibility = self.plan.visibility
        # All frames of the one pass need slots of their own.
        room = self._stream and not self.frames and frames <= (visibility.window or 0)
        if not room:
            self.commit(x0, given)
            return self.denoise(noise, own, generator=generator)
        self._ready = None
        mask = FrameMask(visibility.frame_mask(frames), self.model.tokens_per_frame(*noise.shape[-2:]), "blocks")

        def predict(x: Tensor, sigma: float) -> Tensor:
            if self.frames:
                return self._guided(x, sigma, own)
            levels = x.new_full((len(x), frames), sigma, dtype=torch.float32)
            levels[:, :m] = 0.0
            both, vs = torch.cat([x0.to(x.dtype), x], dim=1), []
            for text, cache in zip(self._texts, self._caches, strict=True):
                vs.append(self.model(both, levels, text, cameras=cameras, mask=mask, cache=cache)[:, m:])
                cache.advance(m)
            if self.memory is not None:
                self.memory.recall(0, m, given)
            self._remember(0, x0, given)
            return self._mixed(vs)

        return denoise(self.plan, noise, predict, generator=generator)

    def _guided(self, x: Tensor, sigma: float, cameras: Cameras | None) -> Tensor:
        """Velocity under the plan's guidance."""
        past = zip(self._texts, self._caches, strict=True)
        return self._mixed([self._ask(x, sigma, text, cameras, cache) for text, cache in past])

    def _mixed(self, vs: list[Tensor]) -> Tensor:
        return vs[0] if len(vs) == 1 else cfg(vs[1], vs[0], self.plan.guidance)

    def _ask(self, x: Tensor, sigma: float, text: TextContext, cameras: Cameras | None, cache: KVCache) -> Tensor:
        """Velocity [B, n, C, H, W] at one noise level of the plan."""
        levels = x.new_full(x.shape[:2], sigma, dtype=torch.float32)
        # Where gradients run, clock and cameras must be part of the graph; training may also have scattered the weights,
        # which only a forward gathers.
        ready = (
            None
            if torch.is_grad_enabled() or not self._stream
            else self._conditions(x, sigma, cameras, cache.frames - self._shift)
        )
        given = {} if ready is None else {"conditions": ready}
        if ready is None and self._shift:
            given["positions"] = torch.arange(x.shape[1], device=x.device) + cache.frames - self._shift
        if not (self._chunkwise and torch.is_grad_enabled()):
            return self.model(x, levels, text, cameras=cameras, cache=cache, **given)
        past = cache.fork()  # as it is now: by the time of the backward, later chunks have joined it

        def again(x: Tensor) -> Tensor:
            velocity: Tensor = self.model(x, levels, text, cameras=cameras, cache=past)
            return velocity

        found: Tensor = checkpoint(again, x, use_reentrant=False, preserve_rng_state=False)
        return found

    def _conditions(self, x: Tensor, sigma: float, cameras: Cameras | None, start: int) -> Any | None:
        """What does not depend on the latents, formed once a chunk for the levels to come and the clean pass."""
        chunk = (start, x.shape, cameras)
        if self._ready is None or sigma not in self._ready.levels or not self._ready.serves(*chunk):
            levels = (*self.plan.sigmas, 0.0)
            # In fixed groups: the last bits of a level's values must not depend on when it is asked for.
            first = levels.index(sigma) // LEVELS * LEVELS
            levels = levels[first : first + LEVELS]
            found = self.model.conditions(levels, x, cameras, start)
            self._ready = _Ready(*chunk, dict(zip(levels, found, strict=True)) if found else dict.fromkeys(levels))
        return self._ready.levels[sigma]

    @torch.no_grad()
    def commit(self, x0: Tensor, cameras: Cameras | None) -> None:
        """Write the keys and values of clean latents [B, n, C, H, W] by one pass at sigma 0; advance by n frames. Where it
        raises, no frame has been added."""
        x0, start = x0.detach(), self.frames
        self._place(x0.shape[1])
        self._recall(x0.shape[1], cameras)
        for text, cache in zip(self._texts, self._caches, strict=True):
            cache.writing = True
            try:
                self._ask(x0, 0.0, text, cameras, cache)
            finally:
                cache.writing = False
        for cache in self._caches:
            cache.advance(x0.shape[1])
        self._remember(start, x0, cameras)

    def _remember(self, start: int, x0: Tensor, cameras: Cameras | None) -> None:
        """Of a stream, keep the clean latents for as long as they are in sight: little beside their keys and values."""
        if self.memory is not None:
            self.memory.add(start, x0)
        if not self._stream:
            return
        past, visibility = (*self._past, _Clean(start, x0, cameras, self._shift)), self.plan.visibility
        oldest = 0 if visibility.window is None else self.frames + visibility.chunk - visibility.window
        self._past = tuple(c for c in past if c.start < visibility.sink or c.stop > oldest)

    def recall(self, cameras: Cameras, host: Cameras) -> None:
        """Choose what the chunk under these cameras recalls. `denoise` and `commit` do so themselves, but wait for the device:
        here the same cameras are given once more on the host."""
        if self.memory is not None:
            self.memory.recall(self.frames, self.frames + cameras.w2c.shape[1], cameras, host)

    @torch.no_grad()
    def _recall(self, n: int, cameras: Cameras | None) -> None:
        if self.memory is not None:
            self.memory.recall(self.frames, self.frames + n, cameras)
            self.memory.show(self.model, self._texts, self._caches, self._shift)

    def _place(self, n: int) -> None:
        """Move the window to where the plan's policy wants it for the next n frames."""
        plan = self.plan
        if not self._stream or plan.positions == "absolute":
            return
        config = self.model.config
        if not (plan.visibility.sink or getattr(config, "camera", None) == "fused"):
            return  # only differences of positions are seen, and they stay
        shift = shift_at(plan.positions, plan.visibility, plan.horizon, self.frames + n)
        if shift == self._shift:
            return
        self._shift = shift
        turns = {}
        for clean in self._past:
            carried = carried_by(config, clean.cameras)
            for i in range(clean.x0.shape[1]):
                if (frame := clean.start + i) >= plan.visibility.sink:
                    turns[frame] = (clean.shift - shift, None if carried is None else carried[:, i : i + 1])
        for cache in self._caches:
            if isinstance(cache, RingCache):
                turn_window(self.model, cache, turns)

    @torch.no_grad()
    def set_text(self, text: TextEmbedding) -> None:
        """Continue under another prompt; the past keeps the keys it was written with."""
        self._texts[0] = self.model.text_context(text)

    @torch.no_grad()
    def recache(self, text: TextEmbedding) -> None:
        """Continue under another prompt, with a past that was written under it: keys and values of all clean latents in
        sight are made anew, oldest first, as if the walk had begun with them (LongLive's recache, arXiv:2509.22622); those
        that are recalled follow when they are next seen. Costs a clean pass a chunk in sight. Needs a stream; where it raises,
        nothing has changed."""
        if not self._stream:
            raise WorldlineError("recache of a loop that keeps blocks; expected one made with cache='ring'")
        other, visibility = self.fork(), self.plan.visibility
        other.set_text(text)
        other._caches = [RingCache(visibility, c.window, c.memory) for c in self._caches if isinstance(c, RingCache)]
        other._past, other._shift, other.memory = (), 0, None
        for clean in self._past:
            if clean.start > other.frames:
                for cache in other._caches:
                    assert isinstance(cache, RingCache)
                    cache.restart(clean.start)
            other.commit(clean.x0, clean.cameras)
        self._texts, self._caches, self._past, self._shift = other._texts, other._caches, other._past, other._shift
        if self.memory is not None:
            self.memory.renew()

    @torch.no_grad()
    def reanchor(self, world: Tensor) -> None:
        """Move the cached world: world [B, 4, 4] maps old to new world coordinates. Exact up to rounding."""
        for cache in self._caches:
            self.model.reanchor(cache, world)
        if self.memory is not None:
            self.memory.reanchor(self.model, world)
        back = torch.linalg.inv(world.double())[:, None]
        self._past = tuple(
            c
            if c.cameras is None
            else replace(c, cameras=replace(c.cameras, w2c=(c.cameras.w2c.double() @ back).float()))
            for c in self._past
        )

    def fork(self, copies: int = 1) -> ChunkLoop:
        """An independent continuation from the same past; of a stream also so many `copies` of it as one batch, copy after
        copy, whose solvers draw the same noise."""
        if copies != 1 and not self._stream:
            raise WorldlineError(f"{copies} copies of a loop that keeps blocks; expected one made with cache='ring'")
        other = object.__new__(ChunkLoop)
        other.model, other.plan, other._texts = self.model, self.plan, list(self._texts)
        other._stream, other._chunkwise, other._ready = self._stream, self._chunkwise, None
        other._past, other._shift, other._copies = self._past, self._shift, self._copies * copies
        other._caches = [c.fork(copies) if isinstance(c, RingCache) else c.fork() for c in self._caches]
        other.memory = None if self.memory is None else self.memory.fork(copies)
        if copies != 1:
            other._texts = [
                TextContext(tuple((_tiled(k, copies), _tiled(v, copies)) for k, v in t.layers)) for t in self._texts
            ]
            other._past = tuple(
                replace(c, x0=_tiled(c.x0, copies), cameras=None if c.cameras is None else c.cameras.tile(batch=copies))
                for c in self._past
            )
        return other


def _tiled(x: Tensor, copies: int) -> Tensor:
    return x.repeat(copies, *[1] * (x.ndim - 1))


def generate(
    loop: ChunkLoop,
    noise: Tensor,
    cameras: Cameras | None,
    *,
    prefix: Tensor | None = None,
    generator: torch.Generator | None = None,
    exit_step: int | None = None,
    grad: bool = False,
) -> Iterator[Tensor]:
    """Yield every chunk's x0 [B, n, C, H, W] before it is committed.

    noise: [B, T, C, H, W]; its first `prefix.shape[1]` frames are replaced by the given clean prefix (not yielded).
    cameras: of all T frames. The last chunk is not committed: nothing follows it.
    """
    visibility, T = loop.plan.visibility, noise.shape[1]
    given = 0 if prefix is None else prefix.shape[1]
    if given != visibility.prefix:
        raise WorldlineError(
            f"{given} prefix latents for a plan with prefix {visibility.prefix}; expected the same number"
        )
    if (T - given) % visibility.chunk:
        raise WorldlineError(f"{T - given} latents to generate do not divide into chunks of {visibility.chunk}")
    training = grad or exit_step is not None
    if prefix is not None and training:
        loop.commit(prefix, None if cameras is None else cameras[:given])
    for start in range(given, T, visibility.chunk):
        frames = slice(start, start + visibility.chunk)
        view = None if cameras is None else cameras[frames]
        if prefix is not None and start == given and not training:
            all_views = None if cameras is None else cameras[: frames.stop]
            x0 = loop.open(prefix, noise[:, frames], all_views, generator=generator)
        else:
            x0 = loop.denoise(noise[:, frames], view, generator=generator, exit_step=exit_step, grad=grad)
        yield x0
        if frames.stop < T:
            loop.commit(x0, view)
