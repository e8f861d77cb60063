"""Dense optical flow (DIS, Kroeger et al. 2016) between neighbours, forwards and backwards, and where both agree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from worldline.evaluate.metrics.frames import check_clip, luminance, shrunk

AGREE = 1.0  # pixels by which forward and backward flow may differ where a match counts


@dataclass(frozen=True)
class Flow:
    """Between F frames at the width of measuring. forward: float32 [F - 1, H, W, 2], pixels from frame t to t + 1;
    residual: how frame t + 1 differs from frame t carried along, in grey levels, float32 [F - 1, H, W]; sure: bool
    [F - 1, H, W], where forward and backward flow agree and the match lies in the picture."""

    forward: np.ndarray
    residual: np.ndarray
    sure: np.ndarray


def dense_flow(frames: np.ndarray) -> Flow:
    """uint8 [F, H, W, 3], F >= 2. Deterministic. Raises ShapeError on other arrays."""
    import cv2

    light = luminance(shrunk(check_clip(frames)))
    grey = light.round().clip(0, 255).astype(np.uint8)
    H, W = grey.shape[1:]
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    finder.setFinestScale(1)
    x, y = np.meshgrid(np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32))
    forward, residual, sure = [], [], []
    for (a, b), (la, lb) in zip(pairwise(grey), pairwise(light), strict=True):
        ab, ba = (finder.calc(p, q, np.zeros((H, W, 2), np.float32)) for p, q in ((a, b), (b, a)))
        mx, my = x + ba[..., 0], y + ba[..., 1]
        there = cv2.remap(ab, mx, my, cv2.INTER_LINEAR)
        inside = (mx >= 0) & (mx <= W - 1) & (my >= 0) & (my <= H - 1)
        forward.append(ab)
        sure.append(inside & (np.linalg.norm(ba + there, axis=-1) < AGREE))
        residual.append(lb - cv2.remap(la, mx, my, cv2.INTER_LINEAR))
    return Flow(np.stack(forward), np.stack(residual), np.stack(sure))
