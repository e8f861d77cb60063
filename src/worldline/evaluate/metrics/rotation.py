"""Turning on the spot, where structure from motion has no solution: the rotation between two frames from matched
directions, by SIFT, two-point RANSAC and a Kabsch fit of the inliers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.evaluate.metrics.frames import check_clip, luminance

FEATURES = 1500
RATIO = 0.8  # Lowe's test
INLIER_DEG = 0.25  # of direction
DRAWS = 200
LEAST = 12  # matches, below which nothing is said


@dataclass(frozen=True)
class Rotations:
    """Of a clip of F frames taken every `stride`: c2w rotations [n, 3, 3] of `frames` [n] in the gauge of the first, and
    the share of matches each step explains, [n - 1]. A share well below 1 says that the camera also moved, or that the
    picture is no rigid world."""

    frames: np.ndarray
    R: np.ndarray
    inliers: np.ndarray


def rotations(clip: np.ndarray, K: np.ndarray, stride: int = 4) -> Rotations | None:
    """uint8 [F, H, W, 3]; K: [4] normalised. None where two frames have too little in common to be matched."""
    import cv2

    picked = np.arange(0, len(check_clip(clip)), stride)
    grey = luminance(clip[picked]).round().astype(np.uint8)
    sift = cv2.SIFT.create(nfeatures=FEATURES)
    found = [sift.detectAndCompute(g, None) for g in grey]
    H, W = grey.shape[1:]
    # SIFT has pixel centres at whole numbers; K has them at halves.
    rays = [_rays(np.array([p.pt for p in points]).reshape(-1, 2) + 0.5, K, H, W) for points, _ in found]
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    R, shares = [np.eye(3)], []
    for i in range(len(picked) - 1):
        if found[i][1] is None or found[i + 1][1] is None:
            return None
        pairs = matcher.knnMatch(found[i][1], found[i + 1][1], k=2)
        good = [m[0] for m in pairs if len(m) == 2 and m[0].distance < RATIO * m[1].distance]
        if len(good) < LEAST:
            return None
        a = rays[i][[m.queryIdx for m in good]]
        b = rays[i + 1][[m.trainIdx for m in good]]
        step, share = _rotation(a, b)
        R.append(R[-1] @ step)
        shares.append(share)
    return Rotations(picked, np.stack(R), np.array(shares))


def _rays(points: np.ndarray, K: np.ndarray, H: int, W: int) -> np.ndarray:
    x, y = (points[:, 0] / W - K[2]) / K[0], (points[:, 1] / H - K[3]) / K[1]
    rays = np.stack([x, y, np.ones_like(x)], axis=1)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _rotation(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """R with a = R b for most directions [N, 3], and the share of those it holds for."""
    rng, limit = np.random.default_rng(0), np.cos(np.deg2rad(INLIER_DEG))
    best = np.zeros(len(a), dtype=bool)
    for _ in range(DRAWS):
        pick = rng.choice(len(a), 2, replace=False)
        inside = np.einsum("ni,ni->n", a, b @ _kabsch(a[pick], b[pick]).T) > limit
        if inside.sum() > best.sum():
            best = inside
    for _ in range(3):
        if best.sum() >= 2:
            R = _kabsch(a[best], b[best])
            best = np.einsum("ni,ni->n", a, b @ R.T) > limit
    return _kabsch(a[best], b[best]) if best.sum() >= 2 else np.eye(3), float(best.mean())


def _kabsch(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    U, _, Vt = np.linalg.svd(a.T @ b)
    return U @ np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))]) @ Vt
