"""Rigid camera motion, OpenCV axes (x right, y down, z forward): +yaw turns right, +pitch looks up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def rotation_yaw(degrees: float) -> np.ndarray:
    """Turn right about the down axis: forward (0, 0, 1) goes to (sin, 0, cos). float64 [3, 3]."""
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


def rotation_pitch(degrees: float) -> np.ndarray:
    """Look up: forward (0, 0, 1) goes to (0, -sin, cos). float64 [3, 3]."""
    a = np.deg2rad(degrees)
    return np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])


def invert_se3(m: Tensor) -> Tensor:
    """Inverse of rigid transforms [..., 4, 4] by transposition, exact in the rotation."""
    R, t = m[..., :3, :3].transpose(-1, -2), m[..., :3, 3:]
    top = torch.cat([R, -R @ t], dim=-1)
    bottom = m.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*m.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def relative_to_first(c2w: np.ndarray) -> np.ndarray:
    """c2w_i <- inv(c2w_0) c2w_i for [F, 4, 4]."""
    return np.linalg.inv(c2w[0]) @ c2w


def integrate(c2w: np.ndarray, yaw: float, pitch: float, move: tuple[float, float, float]) -> np.ndarray:
    """One step of a walk: turn right by `yaw`, look up by `pitch` (degrees), then move (right, up, forward) along the
    new axes. c2w: float64 [4, 4] -> [4, 4]."""
    out = c2w.copy()
    out[:3, :3] = c2w[:3, :3] @ rotation_yaw(yaw) @ rotation_pitch(pitch)
    right, up, forward = move
    out[:3, 3] = c2w[:3, 3] + out[:3, :3] @ np.array([right, -up, forward])
    return out
