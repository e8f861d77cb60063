"""Session: one walk through a world, a chunk at a time.

What a session holds, and what is always true of it:
- `loop` has committed every latent of the log but those of the pending chunk; nothing non-finite is ever in either.
- A step denoises, decodes and returns; the pending chunk is committed by `commit()`, at the latest by the next step, so
  a viewer never waits for the cache.
- A step either happens wholly or, when it raises, not at all: the session goes on from where it was.
- Randomness is a function of (seed, latent index, attempt), and the log is the session: loading and rewinding replay
  it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldline.control.camera import CameraIntegrator
from worldline.functional.camera import cameras_of_path
from worldline.rollout.loop import ChunkLoop
from worldline.schema import CameraPath, Cameras, Controls, ShapeError, WorldlineError
from worldline.stream.log import SessionLog

if TYPE_CHECKING:
    from worldline.stream.engine import Engine

# Model units walked from the anchor before the cached world is moved to the player: far translations cost precision in
# the camera attention, and training clips span about one unit.
REANCHOR_AT = 4.0


class NonFiniteError(WorldlineError):
    """The model gave NaN or infinity twice for one chunk. The session is as it was before the step."""


class BusyError(WorldlineError):
    """Another thread is inside the session."""


@dataclass(frozen=True)
class Timings:
    """Milliseconds of the last chunk by stage; `commit` is of the last commit."""

    denoise: float = 0.0
    decode: float = 0.0
    commit: float = 0.0


def to_uint8(video: Tensor) -> np.ndarray:
    """[F, 3, H, W] in [-1, 1] -> uint8 [F, H, W, 3] on the host."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class Session:
    """Made by `Engine.session`. Not for two threads at once: the second raises BusyError."""

    first_frame: np.ndarray  # uint8 [H, W, 3], the start image as the codec shows it
    timings: Timings
    _log: SessionLog
    _loop: ChunkLoop
    _camera: CameraIntegrator  # the pose after the last chunk shown
    _first_latent: Tensor  # [1, 1, C, H, W]
    _codec_state: Any  # what decoding the next chunk needs of the last
    _pending: tuple[Tensor, Cameras] | None  # latents [1, n, C, H, W] shown and not yet committed

    def __init__(self, engine: Engine, image: np.ndarray, prompt: str, seed: int) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._restart(SessionLog(image, seed, [(0, prompt)]))

    @property
    def prompt(self) -> str:
        """The prompt in force."""
        return self._log.prompts[-1][1]

    @property
    def log(self) -> SessionLog:
        """Image, controls, clean latents, prompts and seed so far: a copy."""
        return self._log.copy()

    @property
    def frame_index(self) -> int:
        """Pixel frames shown so far, the first one included: the index of the next frame."""
        return 1 + len(self._log.controls) * self.engine.frames_per_chunk

    # -- the walk ------------------------------------------------------------------------------------------------------

    def step(self, controls: Controls) -> np.ndarray:
        """Walk one chunk. controls: `engine.frames_per_chunk` rows. Returns frames uint8 [n, H, W, 3].

        Raises ShapeError on another number of rows, NonFiniteError where the model fails twice, BusyError where another
        thread is inside.
        """
        n = self.engine.frames_per_chunk
        if len(controls) != n:
            raise ShapeError(f"{len(controls)} control rows; expected {n}, one for each pixel frame of a chunk")
        with self._alone():
            self._commit()
            begin = time.perf_counter()
            camera = self._camera.fork()
            cameras = self._walked(camera, controls)
            latents = self._denoise(cameras)
            denoised = time.perf_counter()
            video, codec_state = self.engine.codec.decode_stream(latents, self._codec_state)
            if not torch.isfinite(video).all():
                raise NonFiniteError(
                    "the codec gave non-finite pixels; the session is as before; check the codec's weights"
                )
            frames = to_uint8(video[0])
            # Nothing above changed the session; nothing below can fail.
            self._camera, self._codec_state, self._pending = camera, codec_state, (latents, cameras)
            self._log.append(controls, latents[0].float().cpu())
            decoded = time.perf_counter()
            self.timings = Timings(1e3 * (denoised - begin), 1e3 * (decoded - denoised), self.timings.commit)
            return frames

    def commit(self) -> None:
        """Write the chunk that was shown last into the past. Costs one model call; does nothing a second time."""
        with self._alone():
            self._commit()

    def _commit(self) -> None:
        if self._pending is None:
            return
        begin = time.perf_counter()
        self._loop.commit(*self._pending)
        self._pending = None
        if self.engine.model.reanchors and np.linalg.norm(self._camera.pose[:3, 3]) > REANCHOR_AT:
            motion = torch.from_numpy(self._camera.rebase()).float()[None]
            self._loop.reanchor(motion.to(self.engine.device))
        self.timings = Timings(self.timings.denoise, self.timings.decode, 1e3 * (time.perf_counter() - begin))

    def _denoise(self, cameras: Cameras) -> Tensor:
        """x0 [1, n, C, H, W] of the next chunk; drawn anew once where it is not finite."""
        shape = (1, cameras.w2c.shape[1], *self._first_latent.shape[2:])
        for attempt in range(2):
            digest = hashlib.sha256(f"{self._log.seed}/{self._loop.frames}/{attempt}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            noise = torch.randn(shape, generator=generator).to(self.engine.device)
            latents = self._loop.denoise(noise, cameras, generator=generator).float()
            if torch.isfinite(latents).all():
                return latents
        raise NonFiniteError(
            f"the model gave non-finite values for latent {self._loop.frames}, twice; the session is as before: step "
            "with other controls, or reset; where it comes back, check the world's weights"
        )

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
                    [(0, old.prompts[0][1] if prompt is None else prompt)],
                )
            )
        return self.first_frame

    def set_prompt(self, prompt: str) -> None:
        """Go on under another prompt from the next chunk; the past stays as it was made."""
        with self._alone():
            text = self.engine.text(prompt)
            self._commit()
            self._loop.set_text(text)
            self._log.prompts.append((len(self._log.controls), prompt))

    def _restart(self, log: SessionLog) -> None:
        """A fresh state at the start of `log`, whose chunks are not yet replayed."""
        engine = self.engine
        with engine.compute():
            text, c = engine.text(log.prompts[0][1]), engine.config
            pixels = (
                torch.from_numpy(log.image.copy()).to(engine.device).permute(2, 0, 1)[None, None].float() / 127.5 - 1
            )
            latent = engine.codec.encode(pixels).float()
            video, codec_state = engine.codec.decode_stream(latent, None)
            negative = engine.text("") if c.guidance != 1.0 else None
            loop = ChunkLoop(engine.model, c.plan, text, negative=negative, cache="ring")
            camera = CameraIntegrator(c.intrinsics, c.move_scale, c.walk_units_per_frame)
            loop.commit(latent, cameras_of_path(CameraPath(camera.pose[None], camera.K)).to(engine.device))
        self.first_frame = to_uint8(video[0])[0]
        self._first_latent, self._log, self._loop = latent, log, loop
        self._camera, self._codec_state, self.timings = camera, codec_state, Timings()
        self._pending = None

    def _replay(self, log: SessionLog) -> None:
        """Make this session the one of `log`: commit its latents under its controls and prompts."""
        prompts = dict(log.prompts)
        fresh = SessionLog(log.image, log.seed, list(log.prompts))
        self._restart(fresh)
        with self.engine.compute():
            for i, (controls, latents) in enumerate(zip(log.controls, log.latents, strict=True)):
                if i and i in prompts:
                    self._loop.set_text(self.engine.text(prompts[i]))
                cameras = self._walked(self._camera, controls)
                self._pending = (latents[None].to(self.engine.device), cameras)
                self._commit()
                fresh.append(controls, latents)
            shown = torch.cat([self._first_latent[0].cpu(), *log.latents])[None].to(self.engine.device)
            self._codec_state = self.engine.codec.state_after(shown)
            if len(log.controls) in prompts:
                self._loop.set_text(self.engine.text(prompts[len(log.controls)]))

    # -- as a value ----------------------------------------------------------------------------------------------------

    def fork(self) -> Session:
        """An independent session that goes on from here."""
        with self._alone():
            other = copy.copy(self)
            other._lock = threading.Lock()
            other._loop, other._camera, other._log = self._loop.fork(), self._camera.fork(), self._log.copy()
            return other

    def rewind(self, chunks: int = 1) -> None:
        """Forget the last chunks. Costs one model call for every chunk kept."""
        with self._alone():
            if not 0 <= chunks <= len(self._log.controls):
                raise WorldlineError(f"rewind of {chunks} chunks; expected 0 to {len(self._log.controls)}")
            self._replay(self._log.until(len(self._log.controls) - chunks))

    def save(self, path: str | Path) -> None:
        """Write the session to one safetensors file: image, controls, clean latents, prompts, seed."""
        with self._alone():
            self._log.write(path, self.engine.weights)

    @staticmethod
    def load(engine: Engine, path: str | Path) -> Session:
        """The saved session, going on as the original would. Raises WorldlineError for another world's session."""
        log = SessionLog.read(path, engine.weights)
        session = Session(engine, log.image, log.prompts[0][1], log.seed)
        session._replay(log)
        return session

    # -- inside --------------------------------------------------------------------------------------------------------

    def _walked(self, camera: CameraIntegrator, controls: Controls) -> Cameras:
        """Move `camera` by a chunk's controls; the cameras of the chunk's latents, with their motion from the one before."""
        before = camera.pose[None]
        path = camera.extend(controls)[self.engine.grid.stride - 1 :: self.engine.grid.stride]
        whole = CameraPath(np.concatenate([before, path.c2w]), np.concatenate([path.K[:1], path.K]))
        return cameras_of_path(whole)[1:].to(self.engine.device)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise BusyError("the session is being stepped by another thread; use one session a thread, or take turns")
        try:
            with self.engine.compute():
                yield
        finally:
            self._lock.release()
