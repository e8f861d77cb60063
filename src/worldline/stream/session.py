"""Session: one walk through a world, a chunk at a time.

What a session holds, and what is always true of it:
- The loop has committed every latent of the log but those of the pending chunk; nothing non-finite is ever in the log.
- A step denoises, decodes and returns; the pending chunk is committed by `commit()`, at the latest by the next step, so
  a viewer never waits for the cache.
- A call either happens wholly or, when it raises, not at all: the session goes on from where it was. Where a failure
  left the keys and values in doubt, they are made anew from the log before they are used again.
- Randomness is a function of (seed, latent index, attempt), and the log is the session: loading and rewinding replay
  it, to the bit on the same machine.
- From its controls to its frames a chunk asks the device for nothing; frames and a verdict on them come in one wait.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from worldline.schema import Controls, ShapeError, WorldlineError
from worldline.stream.log import GIVEN, Prompt, PromptMode, SavedLog, SessionLog
from worldline.stream.moment import Drawn, Moment, Shown, kept, start_latent, to_video
from worldline.stream.replay import frames_of, replayed

if TYPE_CHECKING:
    from worldline.stream.engine import Engine

ATTEMPTS = 3  # draws of a chunk: two from what is held, the third on keys and values made anew
BLEND_CHUNKS = 8  # over which a blend takes over, unless it is told


class NonFiniteError(WorldlineError):
    """The model gave NaN or infinity for every draw of a chunk. The session is as it was before the call."""


class BusyError(WorldlineError):
    """Another thread is inside the session."""


class ReplayError(WorldlineError):
    """A walk that was saved without its latents came out differently here."""


@dataclass(frozen=True)
class Timings:
    """Milliseconds of the last chunk by stage; `commit` is of the last commit."""

    denoise: float = 0.0
    decode: float = 0.0
    commit: float = 0.0


@dataclass(frozen=True)
class Pending:
    """The last chunk, shown and not yet committed; before: where the walk stood, but for the loop, which still stands there."""

    drawn: Drawn
    before: Moment


class Session:
    """Made by `Engine.session`. Not for two threads at once: the second raises BusyError."""

    first_frame: np.ndarray  # uint8 [H, W, 3], the start image as the codec shows it
    timings: Timings
    _log: SessionLog
    _now: Moment
    _pending: Pending | None
    _kept: tuple[Moment, ...]  # for going back
    _stale: bool  # keys and values are in doubt

    def __init__(self, engine: Engine, image: np.ndarray, prompt: str, seed: int) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self.changes = 0  # calls that changed the walk: whoever works ahead of it looks here
        with engine.compute():
            self._restart(SessionLog(image, seed, [Prompt(0, prompt)]))

    @property
    def prompt(self) -> str:
        """The prompt in force."""
        return self._log.prompts[-1].text

    @property
    def log(self) -> SessionLog:
        """Image, controls, clean latents, prompts and seed so far: a copy."""
        return self._log.copy()

    @property
    def frame_index(self) -> int:
        """Pixel frames shown so far, the first one included: the index of the next frame."""
        return 1 + len(self._log) * self.engine.frames_per_chunk

    @property
    def last_frame(self) -> np.ndarray:
        """The newest picture shown, uint8 [H, W, 3]."""
        return self._now.picture

    @property
    def pose(self) -> np.ndarray:
        """Where the player stands and looks after the last chunk, c2w float64 [4, 4] in the axes of the first frame."""
        return self._now.camera.world_pose()

    # -- the walk ------------------------------------------------------------------------------------------------------

    def step(self, controls: Controls) -> np.ndarray:
        """Walk one chunk. controls: `engine.frames_per_chunk` rows. Returns frames uint8 [n, H, W, 3].

        A chunk that is not finite is drawn anew with another seed, then once more on keys and values that are made anew from
        the log. Raises ShapeError on another number of rows, NonFiniteError where no draw is finite, BusyError where another
        thread is inside.
        """
        self._check_rows(controls)
        with self._alone():
            self._commit()
            return self._walk(controls, self._now)

    def revise(self, controls: Controls) -> np.ndarray:
        """Walk the last chunk again under other controls, with the same seed: for input that came just after `step`. Raises
        WorldlineError where no chunk is pending (it is committed, or nothing was walked), and what `step` raises."""
        self._check_rows(controls)
        with self._alone():
            if self._pending is None or self._stale:
                raise WorldlineError("no chunk is pending; expected a step that is not yet committed")
            return self._walk(controls, self._pending.before)

    def commit(self) -> None:
        """Write the chunk that was shown last into the past. Costs one model call; does nothing a second time."""
        with self._alone():
            self._commit()

    def append(self, past: np.ndarray | Tensor, controls: Controls) -> np.ndarray:
        """Take what really happened as the past: frames uint8 [F, H, W, 3] or clean latents [T, C, H, W] that follow the
        last chunk, whole chunks of them, with the controls of their F (T * stride) pixel frames. Returns the frames as the
        codec shows them. Raises ShapeError, or NonFiniteError on latents that are not finite."""
        n = self.engine.frames_per_chunk
        with self._alone():
            latents, chunks = self._latents_of(past), len(controls) // n
            if not chunks or len(controls) % n or latents.shape[1] * self.engine.grid.stride != len(controls):
                raise ShapeError(
                    f"{latents.shape[1]} latents with {len(controls)} control rows; expected whole chunks of {n} pixel frames "
                    "and one row for each"
                )
            _ = self._now.walked(controls)  # raises on what nobody walks with
            self._commit()
            before, frames = len(self._log), []
            try:
                for i, own in enumerate(latents.chunk(chunks, dim=1)):
                    self._commit()
                    drawn = self._now.given(controls[i * n : (i + 1) * n], own, GIVEN)
                    shown = self._now.shown(drawn)
                    if shown.fault:
                        raise NonFiniteError(f"{shown.fault} for what was appended; the session is as before")
                    self._accept(drawn, shown, self._now)
                    frames.append(shown.frames)
            except BaseException:
                if len(self._log) != before:
                    self._log, self._pending, self._stale = self._log.until(before), None, True
                raise
            return np.concatenate(frames)

    def stream(self, controls: Iterable[Controls]) -> Iterator[np.ndarray]:
        """The frames of chunk after chunk, as many as there are controls. The work of step and commit, with decoding off the
        thread that denoises: a chunk is decoded in a second thread while it is committed and the next one is denoised. So
        controls are taken one chunk ahead of what is shown: for tracks that are known, not for a player's input. May be
        left at any time; the walk is then what was handed out. Other calls in between are allowed and answered."""
        from worldline.stream.pipeline import streamed

        return streamed(self, controls)

    def _walk(self, controls: Controls, at: Moment) -> np.ndarray:
        """Make the chunk that follows `at`, whose loop has committed all that was before, and let it be the pending one."""
        begin, spent, fault = time.perf_counter(), 0.0, ""
        for attempt in range(ATTEMPTS):
            if attempt == ATTEMPTS - 1:
                at = replace(at, loop=self._rebuilt(self._log.until(at.chunks)).loop)
            started = time.perf_counter()
            drawn = at.draw(controls, self._log.seed, attempt)
            spent += time.perf_counter() - started
            shown = at.shown(drawn)
            if not shown.fault:
                self._accept(drawn, shown, at)
                whole = time.perf_counter() - begin
                self.timings = Timings(1e3 * spent, 1e3 * (whole - spent), self.timings.commit)
                return shown.frames
            fault = shown.fault
        raise NonFiniteError(
            f"{fault} in chunk {at.chunks}, in {ATTEMPTS} draws; the session is as before: step with other controls, rewind "
            "or reset; where it comes back, check the world's weights"
        )

    def _accept(self, drawn: Drawn, shown: Shown, at: Moment) -> None:
        """Let a chunk that follows `at` be the last one shown and the pending one."""
        log = self._log.until(at.chunks) if at.chunks < len(self._log) else self._log
        after = copy.copy(at)
        after.take(drawn, shown)
        log.append(drawn.controls, self.engine.stored(drawn.latents), drawn.attempt)
        self._log, self._now, self._pending = log, after, Pending(drawn, at)
        self.changes += 1

    def _commit(self) -> None:
        if self._stale:
            self._now = self._rebuilt(self._log)
            self._pending, self._stale = None, False
        if self._pending is None:
            return
        begin = time.perf_counter()
        try:
            self._now.commit(self._pending.drawn)
        except BaseException:
            self._stale = True
            raise
        self._committed()
        self.timings = replace(self.timings, commit=1e3 * (time.perf_counter() - begin))

    def _committed(self) -> None:
        """The pending chunk is in the past; now and then the moment is kept."""
        self._pending = None
        self._kept = kept(self._kept, self._now, self.engine.snapshot_bytes)

    # -- changing it ---------------------------------------------------------------------------------------------------

    def reset(self, image: np.ndarray | None = None, prompt: str | None = None, seed: int | None = None) -> np.ndarray:
        """Back to the start, or to another one; what is None stays as it was at the start. Returns the first frame."""
        from worldline.stream.world import checked

        with self._alone():
            old, c = self._log, self.engine.config
            self._restart(
                SessionLog(
                    old.image if image is None else checked(image, c.height, c.width),
                    old.seed if seed is None else seed,
                    [Prompt(0, old.prompts[0].text if prompt is None else prompt)],
                )
            )
        return self.first_frame

    def set_prompt(self, prompt: str, mode: PromptMode = "keep", chunks: int = BLEND_CHUNKS) -> None:
        """Go on under another prompt from the next chunk.

        keep: the past stays as it was made. recache: keys and values of what is in sight are made anew under the new prompt,
        so that nothing of the old one is left to see (a model call a chunk in sight). cut: the past is forgotten; the walk
        starts again from the last picture (a model that is told of its start image is told of that one). blend: the new prompt
        takes over evenly during `chunks` chunks. Raises WorldlineError on a prompt, mode or number beyond use; the session is
        then as before.
        """
        if mode not in ("keep", "recache", "cut", "blend") or not 1 <= chunks <= 10_000:
            raise WorldlineError(
                f"prompt mode {mode!r} over {chunks} chunks; expected keep, recache, cut or blend, over 1 to 10000"
            )
        with self._alone():
            self.engine.text(prompt)
            self._commit()
            change = Prompt(len(self._log), prompt, mode, chunks if mode == "blend" else 1)
            cut = start_latent(self.engine, self._now.picture) if mode == "cut" else None
            kept_cut = None if cut is None else self.engine.stored(cut)
            self._now.change_prompt(change, kept_cut)
            log = self._log.copy()
            if kept_cut is not None:
                log.cuts[len(log.prompts)] = kept_cut
            log.prompts.append(change)
            self._log = log
            self.changes += 1

    def _restart(self, log: SessionLog) -> None:
        """At the start of `log`, which has no chunks."""
        self._now = Moment.begin(self.engine, log.image, log.prompts[0].text)
        self.first_frame, self.timings = self._now.picture, Timings()
        self._log, self._pending, self._kept, self._stale = log, None, (), False
        self.changes += 1

    def _rebuilt(self, log: SessionLog, *, generate: bool = False) -> Moment:
        """Where `log`, a beginning of this walk, ends; its kept moments become this session's."""
        now, self._kept = replayed(self.engine, log, self._kept, generate=generate)
        return now

    # -- as a value ----------------------------------------------------------------------------------------------------

    def fork(self) -> Session:
        """An independent session that goes on from here."""
        with self._alone():
            other = copy.copy(self)
            other._lock = threading.Lock()
            other._log, other._now = self._log.copy(), self._now.fork()
            if self._pending is not None:
                other._pending = Pending(self._pending.drawn, replace(self._pending.before, loop=other._now.loop))
            return other

    def rewind(self, chunks: int = 1) -> None:
        """Forget the last chunks, and prompts that were set after what stays. Costs a model call for every chunk since the
        last kept moment (every 8th chunk, fewer long ago), or since the start where none fits `engine.snapshot_bytes`."""
        with self._alone():
            if not 0 <= chunks <= len(self._log):
                raise WorldlineError(f"rewind of {chunks} chunks; expected 0 to {len(self._log)}")
            log = self._log.until(len(self._log) - chunks)
            self._now = self._rebuilt(log)
            self._log, self._pending, self._stale = log, None, False
            self.changes += 1

    def save(self, path: str | Path, *, latents: bool = False) -> None:
        """Write the session to one safetensors file of some kilobytes: image, controls, prompts, seed, and those latents that
        were appended.

        Generated latents are generated again on loading, which takes as long as the walk took to compute and gives the same
        walk only where the same numbers are computed; `load` checks that. With `latents` they are in the file: it loads in
        one model call a chunk, on any machine.
        """
        with self._alone():
            self._log.write(path, self.engine.weights, latents=latents, made=self.engine.arithmetic)

    @staticmethod
    def load(engine: Engine, path: str | Path) -> Session:
        """The saved session, going on as the original would. Raises WorldlineError for another world's session or a damaged
        file, ReplayError where latents were left out and come out differently here."""
        from worldline.stream.world import checked

        saved = SavedLog.read(path, engine.weights)
        log = saved.log
        image = checked(log.image, engine.config.height, engine.config.width)
        for rows in log.controls:
            if len(rows) != engine.frames_per_chunk:
                raise ShapeError(
                    f"{path} has chunks of {len(rows)} control rows; this world takes {engine.frames_per_chunk}"
                )
        wanted = (engine.config.visibility.chunk, *engine.latent_shape)
        for latent, attempt in zip(log.latents, log.attempts, strict=True):
            if (saved.complete or attempt == GIVEN) and tuple(latent.shape) != wanted:
                raise ShapeError(f"{path} has latents {tuple(latent.shape)}; this world makes {wanted}")
        session = Session(engine, image, log.prompts[0].text, log.seed)
        with engine.compute():
            session._now = session._rebuilt(log, generate=not saved.complete)
        session._log = log
        if not saved.complete and log.digest() != saved.digest:
            raise ReplayError(
                f"{path} was saved without its latents, which {saved.made or 'another machine'} made; {engine.arithmetic} on "
                "this machine makes others. Load it as it was made, or save it with latents=True there"
            )
        return session

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The frames of chunks start .. stop (excluded) once more, uint8 [n, H, W, 3] each: decoded again from the log, the
        same to the bit. Takes the walk as it is now; the session may go on meanwhile. Raises WorldlineError on chunks that
        were not walked."""
        log = self.log
        last = len(log) if stop is None else stop
        if not 0 <= start <= last <= len(log):
            raise WorldlineError(f"chunks {start} to {stop} of a walk of {len(log)}; expected a span within it")
        return frames_of(self.engine, log, start, last)

    def record(self, path: str | Path, start: int = 0, stop: int | None = None, scale: int = 1) -> Path:
        """Write the first frame and those of chunks start .. stop (excluded) as an mp4 at the world's frame rate."""
        from worldline.stream.record import write_mp4

        chunks = self.frames(start, stop)
        first = [self.first_frame] if start == 0 else []
        pictures = (frame for part in ([first], chunks) for frames in part for frame in frames)
        return write_mp4(pictures, path, fps=self.engine.config.fps, scale=scale)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _check_rows(self, controls: Controls) -> None:
        n = self.engine.frames_per_chunk
        if len(controls) != n:
            raise ShapeError(f"{len(controls)} control rows; expected {n}, one for each pixel frame of a chunk")

    def _latents_of(self, past: np.ndarray | Tensor) -> Tensor:
        """Frames or latents that follow the last picture -> [1, T, C, H, W]."""
        engine, c = self.engine, self.engine.config
        if isinstance(past, np.ndarray):
            if past.dtype != np.uint8 or past.shape[1:] != (c.height, c.width, 3) or len(past) % engine.grid.stride:
                raise ShapeError(
                    f"frames {past.dtype} {past.shape}: expected uint8 [F, {c.height}, {c.width}, 3], F a multiple of "
                    f"{engine.grid.stride}"
                )
            video = to_video(np.concatenate([self._now.picture[None], past]), engine.device)
            latents = engine.codec.encode(video)[:, 1:]
        else:
            if past.ndim != 4 or tuple(past.shape[1:]) != engine.latent_shape:
                raise ShapeError(
                    f"latents {tuple(past.shape)}: expected [T, {', '.join(map(str, engine.latent_shape))}]"
                )
            latents = past[None].to(engine.device).float()
        latents = engine.kept(latents)
        if not torch.isfinite(latents).all():
            raise NonFiniteError("what was to be appended holds a non-finite value; expected finite latents")
        return latents

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise BusyError("the session is being stepped by another thread; use one session a thread, or take turns")
        try:
            with self.engine.compute():
                yield
        finally:
            self._lock.release()
