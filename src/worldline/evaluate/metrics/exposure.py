"""PSNR after the best brightness and contrast of every colour channel: what colour drift costs is the difference."""

from __future__ import annotations

import numpy as np

from worldline.evaluate.fidelity import CAP_DB
from worldline.evaluate.metrics.frames import check_pair

GAINS = (0.5, 2.0)  # a match beyond these would explain any picture by a flat one


def exposure_psnr(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] twice -> dB [F]: of gain * frame + offset, least squares a channel, gain held to 0.5 .. 2."""
    check_pair(frames, truth)
    out = []
    for shown, true in zip(frames, truth, strict=True):
        a, b = (x.reshape(-1, 3).astype(np.float64) for x in (shown, true))
        da, db = a - a.mean(axis=0), b - b.mean(axis=0)
        gain = np.clip((da * db).sum(axis=0) / np.maximum((da**2).sum(axis=0), 1e-9), *GAINS)
        mse = float(np.square(gain * da - db).mean())
        out.append(min(10 * np.log10(255.0**2 / max(mse, 1e-9)), CAP_DB))
    return np.array(out)
