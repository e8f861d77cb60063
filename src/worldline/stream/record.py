"""Frames to a video file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from worldline.schema import ShapeError


def write_mp4(frames: Iterable[np.ndarray], path: str | Path, fps: float = 16.0, scale: int = 1) -> Path:
    """Encode uint8 [H, W, 3] frames as H.264, enlarged `scale` times: equal frames make equal files. Raises ShapeError on
    another kind of frame."""
    from fractions import Fraction

    import av

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ShapeError(f"frame {frame.dtype} {frame.shape}: expected uint8 [H, W, 3]")
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
                stream.height, stream.width = frame.shape[0] * scale, frame.shape[1] * scale
                # mbtree off: on small pictures it reads memory that x264 never wrote, and bytes vary from run to run.
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "16", "x264-params": "mbtree=0"}
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture.reformat(stream.width, stream.height, interpolation="BICUBIC")))
        if stream is not None:
            container.mux(stream.encode())
    return path
