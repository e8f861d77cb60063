"""Distances between camera paths, as the literature defines them. All are in the gauge of the first frame.

Sums over frames grow with the clip and means do not: both are given, with the unit in the name. A scale is taken out where
it says so; with a simulator it need not be.
"""

from __future__ import annotations

import numpy as np

from worldline.schema import ShapeError


def first_frame_gauge(c2w: np.ndarray) -> np.ndarray:
    """[F, 4, 4] -> inv(c2w_0) c2w_j."""
    return np.linalg.inv(c2w[0]) @ c2w


def angle_deg(R: np.ndarray) -> np.ndarray:
    """Angle of rotations [..., 3, 3] in degrees, exact near 0 as well: 2 asin(|R - 1|_F / sqrt 8)."""
    apart = np.linalg.norm(R - np.eye(3), axis=(-2, -1)) / np.sqrt(8)
    return np.rad2deg(2 * np.arcsin(np.clip(apart, 0, 1)))


def rotation_errors_deg(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """deg(R_j^T R'_j) of frames 1 .. F - 1. Mean: WorldScore's; sum in radians: CameraCtrl's RotErr."""
    a, b = _pair(found, truth)
    return angle_deg(np.swapaxes(b[1:, :3, :3], -1, -2) @ a[1:, :3, :3])


def translation_errors(found: np.ndarray, truth: np.ndarray, *, relative: bool = False) -> np.ndarray:
    """|t_j - t'_j| of frames 1 .. F - 1, in units of the truth. relative: each path divided by its own farthest point
    (CamI2V's TransErr, whose sum is quoted), which hides how far a model walks; nan where a path does not move."""
    a, b = _pair(found, truth)
    t, u = a[1:, :3, 3], b[1:, :3, 3]
    if relative:
        reach = [float(np.linalg.norm(x, axis=1).max(initial=0)) for x in (t, u)]
        if min(reach) < 1e-9:
            return np.full(len(t), np.nan)
        t, u = t / reach[0], u / reach[1]
    return np.linalg.norm(t - u, axis=1)


def cam_mc(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Frobenius distance of [R | t] of frames 1 .. F - 1, translations divided by each path's own reach (MotionCtrl's
    CamMC, whose sum is quoted); a path that does not move keeps its zeros."""
    a, b = (x.copy() for x in _pair(found, truth))
    for x in (a, b):
        x[:, :3, 3] /= max(float(np.linalg.norm(x[:, :3, 3], axis=1).max()), 1e-9)
    return np.linalg.norm((a - b)[1:, :3], axis=(1, 2))


def umeyama(source: np.ndarray, target: np.ndarray, *, scale: bool = True) -> tuple[float, np.ndarray, np.ndarray]:
    """s, R, t that bring source [N, 3] nearest to target: target = s R source + t. (Umeyama 1991)"""
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise ShapeError(f"points {source.shape} and {target.shape}: expected two arrays [N, 3]")
    ms, mt = source.mean(axis=0), target.mean(axis=0)
    a, b = source - ms, target - mt
    U, S, Vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
    R = U @ sign @ Vt
    variance = float(np.square(a).sum() / len(a))
    s = float(np.trace(np.diag(S) @ sign) / variance) if scale and variance > 0 else 1.0
    return s, R, mt - s * R @ ms


def ate(found: np.ndarray, truth: np.ndarray, *, scale: bool = True) -> float:
    """Root mean square distance of positions after the best similarity (or rigid) motion, in units of the truth.
    Meaningless for a turn on the spot, whose positions are noise."""
    a, b = _pair(found, truth)
    s, R, t = umeyama(a[:, :3, 3], b[:, :3, 3], scale=scale)
    return float(np.sqrt(np.square(s * a[:, :3, 3] @ R.T + t - b[:, :3, 3]).sum(axis=1).mean()))


def rpe(found: np.ndarray, truth: np.ndarray, delta: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Translations and degrees by which steps of `delta` frames differ, [F - delta] each."""
    a, b = _pair(found, truth)
    if not 1 <= delta < len(a):
        raise ShapeError(f"steps of {delta} frames in paths of {len(a)}; expected 1 to {len(a) - 1}")
    steps = [np.linalg.inv(x[:-delta]) @ x[delta:] for x in (a, b)]
    apart = np.linalg.inv(steps[1]) @ steps[0]
    return np.linalg.norm(apart[:, :3, 3], axis=1), angle_deg(apart[:, :3, :3])


def _pair(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if found.shape != truth.shape or found.ndim != 3 or found.shape[1:] != (4, 4) or len(found) < 2:
        raise ShapeError(f"poses {found.shape} and {truth.shape}: expected two arrays [F, 4, 4] with F >= 2")
    return first_frame_gauge(np.asarray(found, np.float64)), first_frame_gauge(np.asarray(truth, np.float64))
