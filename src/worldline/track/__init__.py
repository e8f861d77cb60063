"""Where a run may be watched beside its own files: TensorBoard, Weights & Biases, trackio, rerun.

Every tracker is one small file behind an optional package, chosen by name (`--track tensorboard,wandb`) and imported when
it is opened. All write local files; nothing is sent anywhere unless the tracker's own settings (WANDB_MODE=online) say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worldline.schema import WorldlineError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "rerun": "rerun"}  # name -> module
EXTRAS = {"tensorboard": "log", "wandb": "wandb", "trackio": "trackio", "rerun": "rerun"}
PROJECT = "worldline"


class TrackerError(WorldlineError):
    """An unknown tracker, or one whose package is not installed."""


class Tracker(Protocol):
    """Takes what a run tells. Names are slash-separated; steps never go back."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step; what is not finite is left out."""

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """uint8 [H, W, 3]."""

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """uint8 [F, H, W, 3]."""

    def close(self) -> None:
        """Write what is buffered."""


def parse(text: str) -> tuple[str, ...]:
    """`tensorboard,wandb` as names, each installed. Raises TrackerError on any that is unknown or missing."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in PACKAGES:
            raise TrackerError(f"tracker {name!r}; expected some of {', '.join(PACKAGES)}")
        if find_spec(PACKAGES[name]) is None:
            raise TrackerError(
                f"tracker {name} needs the package {PACKAGES[name]}; pip install 'worldline[{EXTRAS[name]}]', "
                "or leave it out of --track"
            )
    return names


def open_trackers(
    names: Sequence[str], folder: Path, run: str, config: Mapping[str, Any] | None = None, *, resume_step: int = 0
) -> list[Tracker]:
    """Open trackers, each under `folder`/<name>. run: the name a reader sees, such as `nano-demo/camera`; the same folder
    and run go on in one curve where the tracker can do that. resume_step: steps from here on are told again.

    Raises TrackerError as `parse` does.
    """
    opened: list[Tracker] = []
    for name in parse(",".join(names)):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        opened.append(
            import_module(f"worldline.track.{name}").open_tracker(place, run, dict(config or {}), resume_step)
        )
    return opened
