"""Frames no one should be shown: non-finite, blank, or flashing."""

from __future__ import annotations

import numpy as np

from worldline.evaluate.metrics.frames import check_clip, luminance
from worldline.schema import ShapeError

BLANK = 1.5  # standard deviation of luminance (of 255) below which a frame shows nothing
FLASH = 0.10  # of the full range: a luminance change that counts as half a flash (after ITU-R BT.1702)
FLASHES = 3  # a second are allowed


def as_clip(frames: np.ndarray) -> tuple[np.ndarray, int]:
    """Frames as a model gave them -> (uint8 [F, H, W, 3], how many had non-finite values; those are black).

    Floats are taken as [0, 1]. Raises ShapeError on anything else.
    """
    if frames.dtype == np.uint8:
        return check_clip(frames), 0
    if not np.issubdtype(frames.dtype, np.floating) or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ShapeError(f"frames {frames.dtype} {frames.shape}: expected uint8, or floats in [0, 1], [F, H, W, 3]")
    bad = ~np.isfinite(frames).reshape(len(frames), -1).all(axis=1)
    clean = np.where(bad[:, None, None, None], 0.0, np.nan_to_num(frames))
    return (clean.clip(0, 1) * 255).round().astype(np.uint8), int(bad.sum())


def blank_frames(frames: np.ndarray) -> int:
    """How many frames show nothing."""
    light = luminance(check_clip(frames))
    return int((light.std(axis=(1, 2)) < BLANK).sum())


def most_flashes(frames: np.ndarray, fps: float) -> int:
    """The most flashes in any second: pairs of opposite changes of the mean luminance of a tenth of the range or more."""
    level = luminance(check_clip(frames)).mean(axis=(1, 2)) / 255
    marks: list[tuple[int, int]] = []  # (frame, direction) of every swing that is large enough
    low = high = level[0]
    for t, value in enumerate(level):
        if value - low >= FLASH and (not marks or marks[-1][1] < 0):
            marks.append((t, 1))
            high = value
        elif high - value >= FLASH and (not marks or marks[-1][1] > 0):
            marks.append((t, -1))
            low = value
        low, high = (min(low, value), max(high, value))
        if marks and marks[-1][0] == t:
            low = high = value
    second = max(1, round(fps))
    return max((sum(a <= t < a + second for t, _ in marks) // 2 for a, _ in marks), default=0)


def strobes(frames: np.ndarray, fps: float) -> bool:
    """Whether any second holds more flashes than FLASHES."""
    return most_flashes(frames, fps) > FLASHES
