"""A log walked again: to be where it ended, or to see its frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from worldline.stream.log import GIVEN, SessionLog
from worldline.stream.moment import Moment, kept, start_latent, to_uint8

if TYPE_CHECKING:
    from worldline.stream.engine import Engine


def replayed(
    engine: Engine, log: SessionLog, moments: tuple[Moment, ...] = (), *, generate: bool = False
) -> tuple[Moment, tuple[Moment, ...]]:
    """Where the walk of `log` ends, everything committed, and the moments kept on the way. moments: of the same walk, to go
    on from. generate: the latents that were generated are not in the log; they are made again and put there.

    What is computed is what the walk computed, in the same order on the same numbers, so the result is the same to the bit.
    """
    good = [m for m in moments if m.chunks <= len(log) and m.loop.finite]
    moments = tuple(good)
    now = good[-1].fork() if good else Moment.begin(engine, log.image, log.prompts[0].text)
    _change_prompts(now, log)
    for i in range(now.chunks, len(log)):
        if generate and log.attempts[i] != GIVEN:
            drawn = now.draw(log.controls[i], log.seed, log.attempts[i])
            log.latents[i] = engine.stored(drawn.latents)
        else:
            latents = log.latents[i][None].to(engine.device).float()
            drawn = now.given(log.controls[i], latents, log.attempts[i])
        now.take(drawn, now.shown(drawn))
        now.commit(drawn)
        moments = kept(moments, now, engine.snapshot_bytes)
        _change_prompts(now, log)
    return now, moments


def _change_prompts(now: Moment, log: SessionLog) -> None:
    """The prompts that were set where the walk stands. A kept moment is from before them."""
    for number, prompt in enumerate(log.prompts):
        if number and prompt.at == now.chunks:
            now.change_prompt(prompt, log.cuts.get(number))


def frames_of(engine: Engine, log: SessionLog, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """The frames uint8 [n, H, W, 3] of chunks start .. stop (excluded), decoded again: those that were shown, to the bit.
    Only latents are read: nothing is denoised. A codec that remembers more than its last latent decodes from the start."""
    with engine.compute():
        _, state = engine.codec.decode_stream(start_latent(engine, log.image), None)
    cuts = {p.at: log.cuts[i] for i, p in enumerate(log.prompts) if i in log.cuts}
    for i in range(len(log) if stop is None else stop):
        with engine.compute():
            if i in cuts:
                _, state = engine.codec.decode_stream(cuts[i][None].to(engine.device).float(), None)
            video, state = engine.codec.decode_stream(log.latents[i][None].to(engine.device).float(), state)
            frames = to_uint8(video[0])
        if i >= start:
            yield frames
