"""What changes although nothing moved: warp error, flicker, cuts.

Differences of neighbouring frames measure motion first of all. Carrying each frame along its flow before comparing leaves
what motion does not explain: flicker (the level of the whole picture jumps), boiling (its texture swims), cuts.
"""

from __future__ import annotations

import numpy as np

from worldline.evaluate.metrics.flow import Flow
from worldline.evaluate.metrics.frames import luminance, shrunk
from worldline.evaluate.metrics.tolerant import neighbour_psnr

CUT_PSNR = 19.0  # dB of two neighbours at their best sideways shift, below which ...
CUT_BELOW = 6.0  # ... and so far below the clip's usual, a frame does not go on from the one before


def warp_error(flow: Flow) -> np.ndarray:
    """Mean unexplained change in grey levels where the match is sure, [F - 1]; nan where none is."""
    return np.array([np.abs(r[s]).mean() if s.any() else np.nan for r, s in zip(flow.residual, flow.sure, strict=True)])


def level_steps(flow: Flow) -> np.ndarray:
    """Signed unexplained change of the whole picture's level from frame to frame, in grey levels, [F - 1]."""
    return np.array([np.median(r[s]) if s.any() else 0.0 for r, s in zip(flow.residual, flow.sure, strict=True)])


def flicker(frames: np.ndarray, flow: Flow) -> float:
    """Root mean square change of direction of the level, as a share of the mean level: a steady fade is none."""
    steps = level_steps(flow)
    mean = float(luminance(shrunk(frames)).mean())
    return float(np.sqrt(np.mean(np.diff(steps) ** 2)) / max(mean, 1.0)) if len(steps) > 1 else 0.0


def cuts(frames: np.ndarray) -> np.ndarray:
    """Frames that do not go on from the one before: indices into the frames."""
    near = neighbour_psnr(frames)
    return np.flatnonzero((near < CUT_PSNR) & (near < np.median(near) - CUT_BELOW)) + 1
