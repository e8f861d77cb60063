"""rerun: one .rrd file, opened with `rerun FILE`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldline.track import PROJECT


def open_tracker(folder: Path, run: str, config: Mapping[str, Any], resume_step: int) -> Rerun:
    """A recording of its own for every start: a finished .rrd cannot be added to."""
    import rerun

    recording = rerun.RecordingStream(PROJECT, recording_id=f"{run}-{resume_step}")
    recording.save(str(folder / f"{run.replace('/', '-')}-{resume_step}.rrd"))
    if config:
        text = "\n".join(f"- {key}: {value}" for key, value in config.items())
        recording.log("run", rerun.TextDocument(text, media_type="text/markdown"), static=True)
    return Rerun(recording)


class Rerun:
    """A `Tracker`. Scalars and pictures lie on the timeline `step`, frames of a clip on `time`, in seconds."""

    def __init__(self, recording: Any) -> None:
        self.recording = recording

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Curves."""
        import rerun

        self.recording.set_time("step", sequence=step)
        for name, value in values.items():
            if math.isfinite(value):
                self.recording.log(name, rerun.Scalars(value))

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture, losslessly packed where it is small."""
        import rerun

        self.recording.set_time("step", sequence=step)
        self.recording.log(name, rerun.Image(np.ascontiguousarray(picture), color_model="RGB"))

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """Every frame as a picture at its time."""
        import rerun

        self.recording.set_time("step", sequence=step)
        for i, frame in enumerate(frames):
            self.recording.set_time("time", duration=i / fps)
            self.recording.log(
                name, rerun.Image(np.ascontiguousarray(frame), color_model="RGB").compress(jpeg_quality=90)
            )
        self.recording.disable_timeline("time")

    def close(self) -> None:
        """Write the rest of the file."""
        self.recording.flush()
        self.recording.disconnect()
