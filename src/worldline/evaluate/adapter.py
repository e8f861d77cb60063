"""Any world model, through three methods. `drive` plays one episode with it and keeps the time.

class Mine:
    def info(self) -> ModelInfo: ...
    def reset(self, image, prompt, seed) -> np.ndarray: ...   # the first frame as the model shows it
    def step(self, controls) -> np.ndarray: ...               # frames_per_step rows of controls -> as many frames

A model that can also show what its codec makes of given frames may have `reconstruct(frames)`; it is the ceiling row.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from worldline.evaluate.metrics.guards import as_clip
from worldline.schema import Controls, ShapeError, WorldlineError

if TYPE_CHECKING:
    from worldline.data.replay import Replay
    from worldline.evaluate.truth import Truth
    from worldline.stream.engine import Engine
    from worldline.stream.session import Session


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is evaluated. facts: anything worth printing beside it (steps, parameters, device, dtype, licence)."""

    name: str
    fps: float
    height: int
    width: int
    frames_per_step: int
    weights: str = ""  # hash of all that decides its output; results are cached under it
    device: str = "cpu"
    timed: bool = True  # False: frames were made elsewhere, and how long they took is not known
    lossy: bool = False  # frames went through a lossy file: PSNR has a ceiling of its own
    facts: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@runtime_checkable
class WorldAdapter(Protocol):
    """The three methods."""

    def info(self) -> ModelInfo: ...

    def reset(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray: ...

    def step(self, controls: Controls) -> np.ndarray: ...


@runtime_checkable
class Reconstructs(Protocol):
    """A model with a codec that can be asked alone."""

    def reconstruct(self, frames: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class Expects(Protocol):
    """A model that must be told which episode follows, as an image alone does not tell it."""

    def expect(self, truth: Truth) -> None: ...


@dataclass(frozen=True)
class Played:
    """frames uint8 [F + 1, H, W, 3]; step_ms [steps]; reset_ms; non_finite: frames that were not all finite (black here)."""

    frames: np.ndarray
    step_ms: np.ndarray
    reset_ms: float
    non_finite: int = 0


def drive(model: WorldAdapter, start: np.ndarray, prompt: str, controls: Controls, seed: int) -> Played:
    """Play F rows of controls from `start`; a last chunk is filled up with standing still and cut off again.

    Raises ShapeError where the model gives another number or size of frames than it says.
    """
    info = model.info()
    n, F = info.frames_per_step, len(controls)
    padded = Controls.concat([controls, Controls.still(-F % n)]) if F % n else controls
    begin = time.perf_counter()
    first, bad = as_clip(_image(model.reset(start, prompt, seed), "reset")[None])
    reset_ms, shown, times = 1e3 * (time.perf_counter() - begin), [first], []
    for at in range(0, len(padded), n):
        begin = time.perf_counter()
        frames = np.asarray(model.step(padded[at : at + n]))
        times.append(1e3 * (time.perf_counter() - begin))
        if frames.shape != (n, *first.shape[1:]):
            raise ShapeError(f"{info.name} gave frames {frames.shape}; expected {(n, *first.shape[1:])}")
        clip, spoilt = as_clip(frames)
        shown.append(clip)
        bad += spoilt
    return Played(np.concatenate(shown)[: F + 1], np.array(times), reset_ms, bad)


def _image(image: np.ndarray, what: str) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ShapeError(f"{what} gave an array {image.shape}; expected one frame [H, W, 3]")
    return image


class EngineAdapter:
    """A streamed world: what a player at the page would see."""

    def __init__(self, engine: Engine, name: str = "") -> None:
        self.engine, self.name = engine, name or engine.spec.name
        self._session: Session | None = None

    def info(self) -> ModelInfo:
        """The world's facts."""
        s = self.engine.spec
        facts = {
            "steps": str(s.steps), "chunk": f"{s.latents_per_chunk} latents", "window": f"{s.window} latents",
            "parameters": f"{s.parameters:,}", "dtype": s.dtype, "threads": str(s.threads),
        }  # fmt: skip
        return ModelInfo(
            name=self.name, fps=s.fps, height=s.height, width=s.width, frames_per_step=s.frames_per_chunk,
            weights=f"{s.weights}-{s.dtype}-{s.steps}", device=s.device, facts=facts,
        )  # fmt: skip

    def reset(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """A fresh session."""
        self._session = self.engine.session(image, prompt, seed)
        return self._session.first_frame

    def step(self, controls: Controls) -> np.ndarray:
        """One chunk."""
        if self._session is None:
            raise WorldlineError("step before reset; call reset(image, prompt, seed) first")
        return self._session.step(controls)

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [F, H, W, 3] through the codec and back, the clip filled up to whole latents by its last frame."""
        import torch

        from worldline.evaluate.player import to_uint8

        codec, missing = self.engine.codec, -(len(frames) - 1) % self.engine.grid.stride
        whole = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames
        video = torch.from_numpy(whole).to(self.engine.device).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
        with self.engine.compute():
            return to_uint8(codec.decode(codec.encode(video)))[0, : len(frames)]


class ReplayAdapter:
    """The simulator behind chunks: the oracle. With it the harness itself is measured: it must score at the ceiling."""

    def __init__(self, frames_per_step: int = 4, height: int = 64, width: int = 96) -> None:
        self.frames_per_step, self.height, self.width = frames_per_step, height, width
        self._truth: Truth | None = None
        self._replay: Replay | None = None

    def info(self) -> ModelInfo:
        """The simulator's facts."""
        return ModelInfo(
            name="oracle", fps=16, height=self.height, width=self.width, frames_per_step=self.frames_per_step,
            weights=f"simulator-{self.frames_per_step}",
        )  # fmt: skip

    def expect(self, truth: Truth) -> None:
        """Stand on the map and at the place of `truth`: an image alone does not tell a simulator where it is."""
        self._truth = truth

    def reset(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """The first frame."""
        from worldline.data.replay import Replay
        from worldline.evaluate.truth import look

        if self._truth is None:
            raise WorldlineError("reset before expect; tell the oracle its case first")
        self.close()
        case = self._truth.case
        self._replay = Replay(case.map_seed, height=self.height, width=self.width)
        return look(self._replay.begin(case.spawn)[None], case.look)[0]

    def step(self, controls: Controls) -> np.ndarray:
        """The frames that follow these controls."""
        from worldline.evaluate.truth import look

        if self._replay is None or self._truth is None:
            raise WorldlineError("step before reset; call reset(image, prompt, seed) first")
        return look(self._replay.go(controls), self._truth.case.look)

    def close(self) -> None:
        """End the engine. Doing so twice is harmless."""
        if self._replay is not None:
            self._replay.close()
            self._replay = None
