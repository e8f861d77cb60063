"""How much the view turned between two frames: the rotation-only warp that explains it best.

A yaw of angle a maps image points by the homography K R(a) K^-1, whatever the depth. Structure from motion has no
solution for turning on the spot, where this is exact. Walking adds parallax, which leaks into the angle: little when
walking ahead, a degree a frame when strafing along a near wall.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from worldline.schema import ShapeError

RANGE_DEG = 12.0  # wide enough for a codec that shows four frames' turn in one jump
STEP_DEG = 0.5
COARSE = 3  # every third candidate first
ZOOMS = np.linspace(-0.06, 0.06, 13)
MIN_CONTRAST = 1.0  # standard deviation of luminance (of 255) below which a frame shows nothing to track
MARGIN = 4  # pixels of the blur's reach, kept out of comparisons at the borders


def yaw_between(frames: np.ndarray, K: np.ndarray, *, discount_level: bool = False) -> np.ndarray:
    """frames: uint8 [F, H, W, 3]; K: [4] normalised fx, fy, cx, cy -> degrees turned right from frame t to t + 1,
    float64 [F - 1]; 0 where a frame is blank. discount_level: the overlap of two frames is brought to one mean first, so
    that a picture that flickers is not taken for one that turns."""
    gray = _luminance(frames)
    warps = _warps(*gray.shape[1:], *(float(k) for k in K))
    return np.array([warps.yaw(a, b, discount_level) for a, b in pairwise(gray)])


def expansion_between(frames: np.ndarray, K: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """How much the view grew from frame t to t + 1 once the turn of `yaw` degrees [F - 1] is undone, as a fraction
    float64 [F - 1]: above 0 when moving ahead, 0 when turning on the spot."""
    gray = _luminance(frames)
    if len(yaw) != len(gray) - 1:
        raise ShapeError(f"{len(yaw)} angles for {len(gray)} frames; expected {len(gray) - 1}")
    warps = _warps(*gray.shape[1:], *(float(k) for k in K))
    return np.array([warps.expansion(a, b, float(angle)) for (a, b), angle in zip(pairwise(gray), yaw, strict=True)])


def _luminance(frames: np.ndarray) -> np.ndarray:
    """Blurred luminance float32 [F, H, W]: sub-pixel angles need smooth images."""
    import cv2

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ShapeError(f"frames {frames.dtype} {frames.shape}: expected uint8 [F, H, W, 3]")
    blur = [cv2.GaussianBlur(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.2) for f in frames]
    return np.stack(blur)


@lru_cache(maxsize=8)
def _warps(height: int, width: int, fx: float, fy: float, cx: float, cy: float) -> _Warps:
    return _Warps(height, width, fx * width, fy * height, cx * width - 0.5, cy * height - 0.5)


class _Warps:
    """Sampling grids of every candidate angle, made once for a frame size. fx .. cy in pixels, pixel centres whole."""

    def __init__(self, height: int, width: int, fx: float, fy: float, cx: float, cy: float) -> None:
        self.height, self.width, self.fx, self.fy, self.cx, self.cy = height, width, fx, fy, cx, cy
        self.X, self.Y = np.meshgrid((np.arange(width) - cx) / fx, (np.arange(height) - cy) / fy)
        self.angles = np.arange(-RANGE_DEG, RANGE_DEG + STEP_DEG / 2, STEP_DEG)
        self.grids = [self.grid(angle, 0.0) for angle in self.angles]

    def grid(self, yaw_deg: float, growth: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a pixel seen after turning right by `yaw_deg` and growing by `growth` was before: x, y [H, W], inside."""
        X, Y, a = self.X / (1 + growth), self.Y / (1 + growth), np.deg2rad(yaw_deg)
        u, w = X * np.cos(a) + np.sin(a), np.cos(a) - X * np.sin(a)
        x, y = (u / w * self.fx + self.cx).astype(np.float32), (Y / w * self.fy + self.cy).astype(np.float32)
        inside = (w > 0.1) & (x >= MARGIN) & (x < self.width - MARGIN) & (y >= MARGIN) & (y < self.height - MARGIN)
        return x, y, inside

    @staticmethod
    def error(
        before: np.ndarray,
        after: np.ndarray,
        grid: tuple[np.ndarray, np.ndarray, np.ndarray],
        discount_level: bool = False,
    ) -> float:
        """Mean absolute difference on the overlap, after the overlap of `before` was scaled to the mean of `after`'s where
        the level is discounted."""
        import cv2

        x, y, inside = grid
        carried = cv2.remap(before, x, y, cv2.INTER_LINEAR)
        if discount_level:
            carried = carried * (after[inside].mean() / max(float(carried[inside].mean()), 1.0))
        return float(np.abs(carried - after)[inside].mean())

    def yaw(self, before: np.ndarray, after: np.ndarray, discount_level: bool = False) -> float:
        """The angle of least error: coarse, fine, then a parabola through the squared errors."""
        if before.std() < MIN_CONTRAST or after.std() < MIN_CONTRAST:
            return 0.0
        known: dict[int, float] = {}

        def error(i: int) -> float:
            if i not in known:
                known[i] = self.error(before, after, self.grids[i], discount_level)
            return known[i]

        last = len(self.angles) - 1
        coarse = min(range(0, last + 1, COARSE), key=error)
        best = min(range(max(coarse - COARSE, 0), min(coarse + COARSE, last) + 1), key=error)
        if not 0 < best < last:
            return float(self.angles[best])
        return float(self.angles[best] + STEP_DEG * _vertex(*(error(i) ** 2 for i in (best - 1, best, best + 1))))

    def expansion(self, before: np.ndarray, after: np.ndarray, yaw_deg: float) -> float:
        """The growth of least error, beside a known turn."""
        if before.std() < MIN_CONTRAST or after.std() < MIN_CONTRAST:
            return 0.0
        errors = [self.error(before, after, self.grid(yaw_deg, zoom)) for zoom in ZOOMS]
        best = int(np.argmin(errors))
        if not 0 < best < len(ZOOMS) - 1:
            return float(ZOOMS[best])
        return float(ZOOMS[best] + (ZOOMS[1] - ZOOMS[0]) * _vertex(*(e**2 for e in errors[best - 1 : best + 2])))


def _vertex(left: float, middle: float, right: float) -> float:
    """Offset of the minimum of a parabola through three neighbours, in steps, at most half a step."""
    bend = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend > 1e-9 else 0.0
