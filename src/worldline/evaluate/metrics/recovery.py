"""How long a world takes to be itself again after something unusual."""

from __future__ import annotations

import numpy as np

WITHIN_QUALITY, WITHIN_GAIN = 0.10, 0.20  # shares of the undisturbed twin's figure


def seconds_to_recover(quality: np.ndarray, twin_quality: np.ndarray, gain: np.ndarray, twin_gain: np.ndarray) -> float:
    """Per second after the disturbance, of the rollout and of its undisturbed twin [S]: the first second from which
    quality is at most a tenth and control gain at most a fifth below the twin's, and stay so for the next second too; inf
    where that never comes. Second 0 means that nothing was lost."""
    well = (quality >= (1 - WITHIN_QUALITY) * twin_quality) & (gain >= twin_gain - WITHIN_GAIN * np.abs(twin_gain))
    for second in range(len(well)):
        if well[second : second + 2].all():
            return float(second)
    return float("inf")
