"""Weights & Biases, offline unless WANDB_MODE says otherwise; `wandb sync <folder>/wandb/offline-run-*` sends it later."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldline.track import PROJECT


def open_tracker(folder: Path, run: str, config: Mapping[str, Any], resume_step: int) -> WandB:
    """A run whose id follows from the folder and its name, so that what goes on after a stop is the same run."""
    import wandb

    number = hashlib.sha256(f"{folder.resolve()}/{run}".encode()).hexdigest()[:12]
    opened = wandb.init(
        project=PROJECT,
        name=run,
        id=number,
        resume="allow",
        dir=str(folder),
        config=dict(config),
        mode=os.environ.get("WANDB_MODE", "offline"),
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True),
    )
    return WandB(opened, folder)


class WandB:
    """A `Tracker`."""

    def __init__(self, run: Any, folder: Path) -> None:
        self.run, self.folder = run, folder

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Curves."""
        self.run.log({name: value for name, value in values.items() if math.isfinite(value)}, step=step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture."""
        import wandb

        self.run.log({name: wandb.Image(picture)}, step=step)

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """A clip, encoded here: from an array the package asks for another one."""
        import wandb

        from worldline.video import write_browser

        path = write_browser(frames, self.folder / "media" / f"{name}-{step}.mp4", fps)
        self.run.log({name: wandb.Video(str(path), format="mp4")}, step=step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()
