"""TensorBoard event files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def open_tracker(folder: Path, run: str, config: Mapping[str, Any], resume_step: int) -> TensorBoard:
    """Events in `folder`; those of steps from `resume_step` on are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    board = TensorBoard(SummaryWriter(str(folder), purge_step=resume_step or None))
    if config:
        rows = "".join(f"| {key} | {value} |\n" for key, value in config.items())
        board.writer.add_text("run", f"**{run}**\n\n| | |\n|---|---|\n{rows}", resume_step)
    return board


class TensorBoard:
    """A `Tracker`."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Curves."""
        for name, value in values.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, step)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture."""
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """A moving picture, as GIF: the writer's own way needs another package."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        pictures, file = [Image.fromarray(f) for f in frames], io.BytesIO()
        pictures[0].save(
            file, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, disposal=1
        )
        height, width = frames.shape[1:3]
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=shown)]), step)

    def close(self) -> None:
        """Flush."""
        self.writer.close()
