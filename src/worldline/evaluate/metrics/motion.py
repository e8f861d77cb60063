"""Camera rates from two frames: yaw, pitch, forward, strafe, by direct alignment.

The image motion of a small camera motion is linear in it (Longuet-Higgins and Prazdny 1980). At image point (X, Y),
normalised by the focal lengths, with inverse depth q:
    yaw a:     (-(1 + X^2) a, -X Y a)
    pitch b:   (X Y b, (1 + Y^2) b)         (up)
    forward f: (q X f, q Y f)
    strafe s:  (-q s, 0)                    (right)
Depth is unknown; rooms have walls about level with the eye, floors and ceilings nearer, so q = q0 + q1 |Y|. The six
numbers are those that carry frame t onto frame t + 1 best (Gauss-Newton on blurred luminance, robust), starting from the
turn that explains it best: plain walls, on which optical flow sees no motion at all, have no weight. Rotations come out in
degrees; translations only up to the scene's depth: read them beside the same measurement on the replay.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from worldline.evaluate.metrics.frames import check_clip, luminance, shrunk
from worldline.evaluate.yaw import yaw_between
from worldline.schema import ShapeError

AXES = ("yaw", "pitch", "forward", "strafe")
BLURS = (2.5, 1.2)  # pixels: far steps first, then exact ones
ROUNDS = 3  # at each blur
SCALE = 6.0  # grey levels beyond which a pixel loses its say
RIDGE = 2e-4  # share of the strongest direction's weight added to every one: what nothing tells stays 0
PIXELS = 1536  # looked at in a pair of frames
REACH = 0.25  # of the smaller side: no pixel moves farther from where the turn put it


def rates(frames: np.ndarray, K: np.ndarray, yaw: np.ndarray | None = None) -> np.ndarray:
    """frames: uint8 [F, H, W, 3]; K: [4] normalised fx, fy, cx, cy; yaw: degrees [F - 1] to start from (default:
    `yaw_between`) -> float64 [F - 1, 4]: degrees turned right, degrees looked up, growth of the view by walking ahead,
    sideways motion over depth (right positive)."""
    small = shrunk(check_clip(frames))
    yaw = yaw_between(small, K, discount_level=True) if yaw is None else yaw
    if len(yaw) != len(small) - 1:
        raise ShapeError(f"{len(yaw)} angles for {len(small)} frames; expected {len(small) - 1}")
    light = luminance(small)
    fields = _fields(*light.shape[1:], *(float(k) for k in K))
    return np.array([fields.solve(a, b, t) for a, b, t in zip(light[:-1], light[1:], yaw, strict=True)]).reshape(-1, 4)


@lru_cache(maxsize=8)
def _fields(height: int, width: int, fx: float, fy: float, cx: float, cy: float) -> _Fields:
    return _Fields(height, width, fx * width, fy * height, cx * width - 0.5, cy * height - 0.5)


class _Fields:
    """Image motion of every unit, in pixels, on a grid of about PIXELS points: u, v [6, h, w]."""

    def __init__(self, height: int, width: int, fx: float, fy: float, cx: float, cy: float) -> None:
        self.step = max(1, round((width * height / PIXELS) ** 0.5))
        xs, ys = (np.arange(n, dtype=np.float32)[self.step // 2 :: self.step] for n in (width, height))
        x, y = np.meshgrid(xs, ys)
        X, Y = (x - cx) / fx, (y - cy) / fy
        near, zero, one = np.abs(Y), np.zeros_like(X), np.ones_like(X)
        u = [-(1 + X**2), X * Y, X, near * X, -one, -near]
        v = [-X * Y, 1 + Y**2, Y, near * Y, zero, zero]
        self.x, self.y, self.reach = x, y, REACH * min(height, width)
        self.u = (np.stack(u) * fx).astype(np.float32)
        self.v = (np.stack(v) * fy).astype(np.float32)
        self.typical = float(near.mean())

    def solve(self, before: np.ndarray, after: np.ndarray, yaw_deg: float) -> tuple[float, float, float, float]:
        """Rates of one pair of luminances [H, W]."""
        import cv2

        H, W = before.shape
        p = np.zeros(6)
        p[0] = np.deg2rad(yaw_deg)
        turned = p.copy()
        for sigma in BLURS:
            a, b = cv2.GaussianBlur(before, (0, 0), sigma), cv2.GaussianBlur(after, (0, 0), sigma)
            grid = np.s_[self.step // 2 :: self.step, self.step // 2 :: self.step]
            gx = cv2.Sobel(b, cv2.CV_32F, 1, 0, scale=1 / 8)[grid]
            gy = cv2.Sobel(b, cv2.CV_32F, 0, 1, scale=1 / 8)[grid]
            J, b = -(gx * self.u + gy * self.v), b[grid]
            for _ in range(ROUNDS):
                # The pixel seen at (x, y) now was at (x, y) - motion before.
                mx, my = self.x - np.tensordot(p, self.u, 1), self.y - np.tensordot(p, self.v, 1)
                inside = (mx > 1) & (mx < W - 2) & (my > 1) & (my < H - 2)
                if inside.sum() < 64:
                    return float(yaw_deg), 0.0, 0.0, 0.0
                r = b - cv2.remap(a, mx.astype(np.float32), my.astype(np.float32), cv2.INTER_LINEAR)
                r = r - np.median(r[inside])  # a change of level is no motion
                # carried(p + d) = carried(p) - gradient . fields d, so that r = J d
                flat, weight = J.reshape(6, -1), (inside / (1 + (r / SCALE) ** 2)).ravel()
                A = (flat * weight) @ flat.T
                p = p + np.linalg.solve(A + (RIDGE * np.trace(A) / 6 + 1e-9) * np.eye(6), (flat * weight) @ r.ravel())
                step = p - turned
                far = np.hypot(np.tensordot(step, self.u, 1), np.tensordot(step, self.v, 1)).max()
                if far > self.reach:
                    p = turned + step * self.reach / far
        yaw, pitch = np.rad2deg(p[:2])
        return float(yaw), float(pitch), float(p[2] + self.typical * p[3]), float(p[4] + self.typical * p[5])
