"""How much the view turned between two frames: the rotation-only warp that explains it best.

A yaw of angle a maps image points by the homography K R(a) K^-1, whatever the depth; walking disturbs it little at small
steps. Works on a blurred luminance at the frames' own size.
"""

from __future__ import annotations

import numpy as np

RANGE_DEG = 9.0
STEP_DEG = 0.5
MIN_CONTRAST = 1.0  # standard deviation of luminance (of 255) below which a frame shows nothing to track


def yaw_between(frames: np.ndarray, K: np.ndarray) -> np.ndarray:
    """frames: uint8 [F, H, W, 3]; K: [4] normalised -> degrees turned right from frame t to t + 1, float64 [F - 1]."""
    gray = np.stack([_luminance(f) for f in frames])
    maps = _Warps(gray.shape[1], gray.shape[2], K)
    return np.array([maps.estimate(a, b) for a, b in zip(gray[:-1], gray[1:], strict=True)])


def _luminance(frame: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.2)


class _Warps:
    """Sampling grids of every candidate angle, made once for a frame size."""

    def __init__(self, height: int, width: int, K: np.ndarray) -> None:
        self.angles = np.arange(-RANGE_DEG, RANGE_DEG + STEP_DEG / 2, STEP_DEG)
        fx, fy = K[0] * width, K[1] * height
        x = (np.arange(width) + 0.5 - K[2] * width) / fx
        y = (np.arange(height) + 0.5 - K[3] * height) / fy
        X, Y = np.meshgrid(x, y)
        self.grids = []
        for angle in np.deg2rad(self.angles):
            # A point seen at (X, Y, 1) after turning right by `angle` was at R (X, Y, 1) before.
            u, w = X * np.cos(angle) + np.sin(angle), np.cos(angle) - X * np.sin(angle)
            mx = (u / w * fx + K[2] * width - 0.5).astype(np.float32)
            my = (Y / w * fy + K[3] * height - 0.5).astype(np.float32)
            inside = (w > 0.1) & (mx >= 0) & (mx <= width - 1) & (my >= 0) & (my <= height - 1)
            self.grids.append((mx, my, inside))

    def error(self, before: np.ndarray, after: np.ndarray, index: int) -> float:
        """Mean absolute difference on the overlap under candidate `index`."""
        import cv2

        mx, my, inside = self.grids[index]
        warped = cv2.remap(before, mx, my, cv2.INTER_LINEAR)
        return float(np.abs(warped - after)[inside].mean())

    def estimate(self, before: np.ndarray, after: np.ndarray) -> float:
        """The angle of least error, refined by a parabola; 0 where there is nothing to see."""
        if before.std() < MIN_CONTRAST or after.std() < MIN_CONTRAST:
            return 0.0
        errors = np.array([self.error(before, after, i) for i in range(len(self.angles))])
        i = int(errors.argmin())
        if 0 < i < len(errors) - 1:
            left, mid, right = errors[i - 1 : i + 2] ** 2
            bend = left - 2 * mid + right
            if bend > 1e-9:
                return float(self.angles[i] + STEP_DEG * np.clip(0.5 * (left - right) / bend, -0.5, 0.5))
        return float(self.angles[i])
