"""The one chunk loop: training rollouts, AR sampling, evaluation and live streaming all step this class.

A chunk is denoised against the cached clean past, handed out, and only then committed (one clean pass at sigma 0 that
writes its keys and values), so that a viewer never waits for the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from worldline.functional.flow import cfg
from worldline.models.backbone import Backbone, TextContext
from worldline.nn.attention import FrameMask
from worldline.nn.kv_cache import BlockCache, KVCache, RingCache
from worldline.rollout.denoise import denoise
from worldline.rollout.plan import RolloutPlan
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
        """text: [B] prompts; negative: the unconditional prompt, needed where plan.guidance != 1; capacity: latent
        frames a ring cache holds where the plan's visibility has no window; chunkwise: backward keeps a chunk's latents
        alone and takes its forward again when its turn comes, so that one chunk's activations are alive at a time."""
        self.model, self.plan = model, plan
        self._stream, self._chunkwise = cache == "ring", chunkwise
        self._ready: _Ready | None = None
        if plan.guidance != 1.0 and negative is None:
            raise WorldlineError(f"guidance {plan.guidance} needs a negative prompt; pass negative=, or set guidance 1")
        prompts = [text] if plan.guidance == 1.0 or negative is None else [text, negative]
        # Training rollouts let the prompt's keys and values learn; a stream has nothing to learn.
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache == "blocks"):
            self._texts: list[TextContext] = [model.text_context(p) for p in prompts]
        self._caches: list[KVCache] = [
            BlockCache(plan.visibility) if cache == "blocks" else RingCache(plan.visibility, capacity) for _ in prompts
        ]

    @property
    def frames(self) -> int:
        """Latent frames committed so far."""
        return self._caches[0].frames

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
        return denoise(
            self.plan,
            noise,
            lambda x, sigma: self._guided(x, sigma, cameras),
            generator=generator,
            exit_step=exit_step,
            grad=grad,
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
            None if torch.is_grad_enabled() or not self._stream else self._conditions(x, sigma, cameras, cache.frames)
        )
        given = {} if ready is None else {"conditions": ready}
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
        """Write the keys and values of clean latents [B, n, C, H, W] by one pass at sigma 0; advance by n frames."""
        x0 = x0.detach()
        for text, cache in zip(self._texts, self._caches, strict=True):
            cache.writing = True
            try:
                self._ask(x0, 0.0, text, cameras, cache)
                cache.advance(x0.shape[1])
            finally:
                cache.writing = False

    @torch.no_grad()
    def set_text(self, text: TextEmbedding) -> None:
        """Continue under another prompt; the past keeps the keys it was written with."""
        self._texts[0] = self.model.text_context(text)

    @torch.no_grad()
    def reanchor(self, world: Tensor) -> None:
        """Move the cached world: world [B, 4, 4] maps old to new world coordinates. Exact up to rounding."""
        for cache in self._caches:
            self.model.reanchor(cache, world)

    def fork(self) -> ChunkLoop:
        """An independent continuation from the same past."""
        other = object.__new__(ChunkLoop)
        other.model, other.plan, other._texts = self.model, self.plan, list(self._texts)
        other._stream, other._chunkwise, other._ready = self._stream, self._chunkwise, None
        other._caches = [cache.fork() for cache in self._caches]
        return other


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
