"""Clips as video files: for browsers, and exactly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from worldline.schema import ShapeError

SMALL = 256  # pictures narrower than this are enlarged: players blur them otherwise


def write_browser(frames: np.ndarray, path: Path, fps: float, crf: int = 20) -> Path:
    """uint8 [F, H, W, 3] as H.264 that browsers play, small pictures enlarged by whole factors without smoothing and odd
    sizes filled up at their edges. Raises ShapeError on anything but frames."""
    scale = max(1, -(-SMALL // _checked(frames).shape[2]))
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    odd = [(0, size % 2) for size in large.shape[1:3]]
    large = np.pad(large, ((0, 0), *odd, (0, 0)), mode="edge")
    # mbtree off: on small pictures it reads memory that x264 never wrote, and bytes vary from run to run.
    return _write(large, path, fps, "libx264", "yuv420p", {"crf": str(crf), "x264-params": "mbtree=0"})


def write_exact(frames: np.ndarray, path: Path, fps: float) -> Path:
    """uint8 [F, H, W, 3] as lossless H.264 in RGB (High 4:4:4 Predictive): OpenCV, decord and PyAV read the very frames.
    Raises ShapeError on anything but frames."""
    return _write(_checked(frames), path, fps, "libx264rgb", "rgb24", {"qp": "0", "preset": "medium"})


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ShapeError(f"frames {frames.dtype} {frames.shape}: expected uint8 [F, H, W, 3], F >= 1")
    return frames


def _write(frames: np.ndarray, path: Path, fps: float, codec: str, pixels: str, options: dict[str, str]) -> Path:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = pixels, options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path
