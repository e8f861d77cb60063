"""What several metrics do to frames first: checks, luminance, a bounded size."""

from __future__ import annotations

import numpy as np

from worldline.schema import ShapeError

FLOW_WIDTH = (
    160  # pixels; motion is measured at this width or below, so that cost and thresholds do not grow with the picture
)


def check_clip(frames: np.ndarray, name: str = "frames") -> np.ndarray:
    """frames, if they are uint8 [F, H, W, 3] with F >= 1; else a ShapeError."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ShapeError(f"{name} {frames.dtype} {frames.shape}: expected uint8 [F, H, W, 3] with at least one frame")
    return frames


def check_pair(frames: np.ndarray, truth: np.ndarray) -> None:
    """Raises ShapeError unless both are clips of one size and length: nothing is cut to fit."""
    check_clip(frames)
    check_clip(truth, "truth")
    if frames.shape != truth.shape:
        raise ShapeError(f"frames {frames.shape} and truth {truth.shape}: expected one size and one number of frames")


def luminance(frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] -> float32 [F, H, W] in 0..255 (Rec. 601)."""
    return frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def chroma(frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] -> Y, Cb, Cr float32 [F, H, W, 3], Cb and Cr around 0."""
    matrix = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float32
    )
    return frames.astype(np.float32) @ matrix.T


def shrunk(frames: np.ndarray, width: int = FLOW_WIDTH) -> np.ndarray:
    """frames at most `width` wide, area-averaged; unchanged where they already are."""
    import cv2

    H, W = frames.shape[1:3]
    if width >= W:
        return frames
    size = (width, max(1, round(H * width / W)))
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])
