"""Distance to the truth, frame by frame. Meaningless alone: print it beside its ceiling and its floors."""

from __future__ import annotations

import numpy as np

from worldline.schema import ShapeError

CAP_DB = 60.0


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """10 log10(255^2 / MSE) in dB of uint8 frames [..., H, W, 3] -> [...], capped at 60 dB so that means exist.

    Means are taken over frames, then episodes (never over MSE). Raises ShapeError on frames of two sizes or counts:
    nothing is cut to fit.
    """
    if a.shape != b.shape or a.ndim < 3 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ShapeError(
            f"frames {a.dtype} {a.shape} and {b.dtype} {b.shape}: expected two uint8 arrays [..., H, W, 3]"
        )
    mse = np.square(a.astype(np.float32) - b.astype(np.float32)).mean(axis=(-3, -2, -1), dtype=np.float64)
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(mse, 1e-9)), CAP_DB)


def skill(model: float, floor: float, ceiling: float) -> float:
    """(model - floor) / (ceiling - floor): 0 is no better than the floor, 1 as good as the codec allows; nan where
    ceiling and floor coincide."""
    return (model - floor) / (ceiling - floor) if ceiling - floor > 1e-9 else float("nan")
