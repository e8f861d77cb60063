"""The inside of a textured box, rendered exactly for any camera: every ray meets one of six planes."""

from __future__ import annotations

import cv2
import numpy as np

from worldline.functional.camera import rotation_yaw

K = np.array([0.58, 0.58 * 448 / 256, 0.5, 0.5])
SIZE = np.array([6.0, 3.0, 6.0])  # of the box, x right, y down, z ahead; the origin is its middle


def _texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.zeros((1024, 1024, 3), np.float32)
    for cells, weight in ((12, 0.3), (48, 0.4), (160, 0.3)):
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        out += weight * cv2.resize(noise, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    return out


def render(c2w: np.ndarray, height: int = 256, width: int = 448) -> np.ndarray:
    """c2w [F, 4, 4] inside the box -> uint8 [F, H, W, 3], smoothed by half a pixel."""
    textures = [_texture(i) for i in range(6)]
    x = ((np.arange(width) + 0.5) / width - K[2]) / K[0]
    y = ((np.arange(height) + 0.5) / height - K[3]) / K[1]
    X, Y = np.meshgrid(x, y)
    rays = np.stack([X, Y, np.ones_like(X)], axis=-1)
    frames = []
    for pose in c2w:
        d, o = rays @ pose[:3, :3].T, pose[:3, 3]
        with np.errstate(divide="ignore"):
            t = np.where(d > 0, (SIZE / 2 - o) / d, (-SIZE / 2 - o) / d)
        axis = np.argmin(t, axis=-1)
        hit = o + np.take_along_axis(t, axis[..., None], -1) * d
        image = np.zeros((height, width, 3), np.float32)
        for a in range(3):
            u, v = (b for b in range(3) if b != a)
            for side in (0, 1):
                mask = (axis == a) & ((d[..., a] > 0) == bool(side))
                if mask.any():
                    px = ((hit[..., u] / 6 + 0.5) * 1023).astype(np.float32)
                    py = ((hit[..., v] / 6 + 0.5) * 1023).astype(np.float32)
                    image[mask] = cv2.remap(textures[2 * a + side], px, py, cv2.INTER_LINEAR)[mask]
        frames.append(cv2.GaussianBlur(image, (0, 0), 0.5).round().clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def poses(yaw_deg: np.ndarray, position: np.ndarray) -> np.ndarray:
    """c2w [F, 4, 4] of headings [F] to the right and positions [F, 3]."""
    c2w = np.tile(np.eye(4), (len(yaw_deg), 1, 1))
    c2w[:, :3, :3] = [rotation_yaw(float(y)) for y in yaw_deg]
    c2w[:, :3, 3] = position
    return c2w
