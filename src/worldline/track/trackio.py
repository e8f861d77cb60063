"""trackio: a local SQLite file, looked at with `trackio show`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldline.track import PROJECT


def open_tracker(folder: Path, run: str, config: Mapping[str, Any], resume_step: int) -> Trackio:
    """A run in trackio's own local store (TRACKIO_DIR, by default under the user's cache)."""
    import trackio

    opened = trackio.init(project=PROJECT, name=run.replace("/", "-"), config=dict(config), resume="allow", embed=False)
    return Trackio(opened, folder)


class Trackio:
    """A `Tracker`."""

    def __init__(self, run: Any, folder: Path) -> None:
        self.run, self.folder = run, folder

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Curves."""
        self.run.log({name: value for name, value in values.items() if math.isfinite(value)}, step=step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture."""
        import trackio

        self.run.log({name: trackio.Image(picture)}, step=step)

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """A clip, encoded here: from an array the package asks for ffmpeg."""
        import trackio

        from worldline.video import write_browser

        path = write_browser(frames, self.folder / "media" / f"{name}-{step}.mp4", fps)
        self.run.log({name: trackio.Video(str(path))}, step=step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()
