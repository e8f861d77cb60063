"""No-reference statistics of every frame: what drifts when a rollout decays."""

from __future__ import annotations

import numpy as np

from worldline.evaluate.metrics.frames import check_clip, chroma

STATISTICS = ("sharpness", "contrast", "level", "cb", "cr", "clipped")


def quality(frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] -> float64 [F, 6] in the order of STATISTICS: variance of the Laplacian of the luminance, its
    standard deviation, its mean, mean Cb, mean Cr (grey levels), share of channel values at 0 or 255."""
    import cv2

    rows = []
    for frame in check_clip(frames):
        ycc = chroma(frame[None])[0]
        light = ycc[..., 0]
        sharp = float(cv2.Laplacian(np.ascontiguousarray(light), cv2.CV_32F).var())
        clipped = float(((frame == 0) | (frame == 255)).mean())
        rows.append((sharp, float(light.std()), *(float(ycc[..., i].mean()) for i in range(3)), clipped))
    return np.array(rows, dtype=np.float64)
