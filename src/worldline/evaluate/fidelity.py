"""Distance to the truth, frame by frame."""

from __future__ import annotations

import numpy as np

CAP_DB = 60.0


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """10 log10(255^2 / MSE) of uint8 frames [..., H, W, 3] -> [...], capped at 60 dB."""
    mse = np.square(a.astype(np.float64) - b.astype(np.float64)).mean(axis=(-3, -2, -1))
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(mse, 1e-9)), CAP_DB)
