"""How long a rollout is of use: until it is hardly nearer the truth than a guess.

A guess is a sharp picture, a rollout one through a codec: in a plain room the softness alone would put a rollout behind a
guess at once. So what the codec does to the truth is taken off first: of use is a frame whose error beyond the codec's is
below half (3 dB) of the guess's.
"""

from __future__ import annotations

import numpy as np

SHARE = 0.5  # of the guess's squared error, above which a frame is no longer of use
SMOOTH = 8  # frames averaged, so that one bad frame ends nothing


def useful_frames(
    model: np.ndarray, guess: float, codec: np.ndarray | None = None, share: float = SHARE
) -> tuple[int, bool]:
    """model, codec: tolerant PSNR [F] in dB of the frames after the start, of the rollout and of the truth through its codec
    (none: a codec without error); guess: that of a guess -> (frames until the running mean of the rollout's squared error
    less the codec's exceeds `share` of the guess's, whether it did). A clip that never does is censored at F."""
    error = _running(_squared(model))
    if codec is not None:
        error = error - _running(_squared(codec))
    lost = np.flatnonzero(error > share * _squared(guess))
    return (int(lost[0]), True) if len(lost) else (len(model), False)


def _squared(psnr: np.ndarray | float) -> np.ndarray:
    """Mean squared error of a PSNR, in units of the largest value's square."""
    return 10 ** (-np.asarray(psnr, dtype=np.float64) / 10)


def _running(values: np.ndarray) -> np.ndarray:
    n = min(SMOOTH, len(values))
    return np.convolve(values, np.ones(n) / n, mode="valid")


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
