"""How long a rollout is of use: until it is hardly nearer the truth than a guess."""

from __future__ import annotations

import numpy as np

MARGIN_DB = 3.0  # above the floor, below which a frame is no longer of use
SMOOTH = 8  # frames averaged, so that one bad frame ends nothing


def useful_frames(model: np.ndarray, floor: np.ndarray, margin: float = MARGIN_DB) -> tuple[int, bool]:
    """model, floor: tolerant PSNR [F] of the frames after the start -> (frames until the running mean of the model falls
    under the floor's + margin, whether it did). A clip that never falls is censored at F."""
    kernel = np.ones(min(SMOOTH, len(model))) / min(SMOOTH, len(model))
    gap = np.convolve(model - floor, kernel, mode="valid")
    fallen = np.flatnonzero(gap < margin)
    return (int(fallen[0]), True) if len(fallen) else (len(model), False)


def kaplan_meier_median(times: np.ndarray, ended: np.ndarray) -> float:
    """The time by which half have ended, the censored ones counted as long as they were seen; inf where fewer than half
    ever end. (Kaplan and Meier 1958)"""
    times, ended = np.asarray(times, dtype=np.float64), np.asarray(ended, dtype=bool)
    surviving = 1.0
    for t in np.unique(times[ended]):
        at_risk = (times >= t).sum()
        surviving *= 1 - (ended & (times == t)).sum() / at_risk
        if surviving <= 0.5:
            return float(t)
    return float("inf")
