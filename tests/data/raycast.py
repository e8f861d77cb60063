"""Exact depth of a doomrooms view by casting rays through the map's own cells: no engine, no depth buffer.

A view has yaw only, so all rows of a column share one ground track: each column walks the grid once, and every row of it
ends at the floor, at a ceiling, at the step between two ceilings, or at a solid cell.
"""

from __future__ import annotations

import numpy as np

from worldline.data.sources.doomrooms.engine import Z_STRETCH
from worldline.data.sources.doomrooms.maps import CELL, Map


def rays(c2w: np.ndarray, K: np.ndarray, height: int, width: int) -> np.ndarray:
    """World directions [H, W, 3] through pixel centres, of unit length along the camera's forward axis."""
    u, v = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    x, y = np.meshgrid((u - K[2]) / K[0], (v - K[3]) / K[1])
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ c2w[:3, :3].T


def depth(level: Map, c2w: np.ndarray, K: np.ndarray, height: int, width: int) -> np.ndarray:
    """Depth along the forward axis, game units, [H, W]."""
    direction, origin = rays(c2w, K, height, width), c2w[:3, 3]
    out = np.empty((height, width))
    for column in range(width):
        out[:, column] = _column(level, origin, direction[0, column, :2], direction[:, column, 2])
    return out


def _column(level: Map, origin: np.ndarray, ground: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """Distances of the rows [H] of one column; `rise` is each row's height gained a unit of distance."""
    cell = np.floor(origin[:2] / CELL).astype(int)
    step = np.where(ground > 0, 1, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_floor = np.where(rise < 0, -origin[2] / rise, np.inf)
    found = np.full(len(rise), np.inf)
    while not np.isfinite(found).all():
        room = level.cells[cell[1], cell[0]]
        ceiling = level.rooms[room].height * Z_STRETCH
        with np.errstate(divide="ignore", invalid="ignore"):
            to_ceiling = np.where(rise > 0, (ceiling - origin[2]) / rise, np.inf)
            exits = ((cell + (step > 0)) * CELL - origin[:2]) / ground
        leave, axis = float(exits.min()), int(exits.argmin())
        surface = np.minimum(to_floor, to_ceiling)
        found = np.where(np.isinf(found) & (surface <= leave), surface, found)
        cell[axis] += step[axis]
        beyond = level.cells[cell[1], cell[0]]
        opening = 0.0 if beyond < 0 else level.rooms[beyond].height * Z_STRETCH
        blocked = (beyond < 0) | (origin[2] + rise * leave > opening)
        found = np.where(np.isinf(found) & blocked, leave, found)
    return found


def project(points: np.ndarray, c2w: np.ndarray, K: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """(u, v, depth) of world points [..., 3]: pixel coordinates with centres at .5."""
    local = (points - c2w[:3, 3]) @ c2w[:3, :3]
    z = np.maximum(local[..., 2], 1e-6)
    return (local[..., 0] / z * K[0] + K[2]) * width, (local[..., 1] / z * K[1] + K[3]) * height, local[..., 2]


def bilinear(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Sample [H, W, ...] at pixel coordinates whose centres are at .5; the border is repeated."""
    H, W = image.shape[:2]
    x, y = np.clip(u - 0.5, 0, W - 1.001), np.clip(v - 0.5, 0, H - 1.001)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    extra = (1,) * (image.ndim - 2)
    fx, fy = (x - x0).reshape(*x.shape, *extra), (y - y0).reshape(*y.shape, *extra)
    top = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    return top * (1 - fy) + (image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx) * fy
