"""Rigid camera motion, OpenCV axes (x right, y down, z forward): +yaw turns right, +pitch looks up."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldline.schema import CameraPath, Cameras


def rotation_yaw(degrees: float) -> np.ndarray:
    """Turn right about the down axis: forward (0, 0, 1) goes to (sin, 0, cos). float64 [3, 3]."""
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


def rotation_pitch(degrees: float) -> np.ndarray:
    """Look up: forward (0, 0, 1) goes to (0, -sin, cos). float64 [3, 3]."""
    a = np.deg2rad(degrees)
    return np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])


def invert_se3(m: Tensor) -> Tensor:
    """Inverse of rigid transforms [..., 4, 4] by transposition, exact in the rotation; the last row is its own inverse."""
    R, t = m[..., :3, :3].transpose(-1, -2), m[..., :3, 3:]
    return torch.cat([torch.cat([R, -R @ t], dim=-1), m[..., 3:, :]], dim=-2)


def relative_motion(w2c: Tensor) -> Tensor:
    """What the camera did since the frame before: w2c [..., T, 4, 4] -> [..., T, 6], (rotation vector in radians,
    translation) in the axes of frame t - 1; zeros for the first frame. Formed in float64; knows no world frame."""
    c2w = invert_se3(w2c.double())
    step = invert_se3(c2w[..., :-1, :, :]) @ c2w[..., 1:, :, :]
    R = step[..., :3, :3]
    skew = torch.stack(
        [R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], dim=-1
    )  # 2 sin(angle) axis
    sine, cosine = skew.norm(dim=-1) / 2, (R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.atan2(sine, cosine)
    rotation = skew * torch.where(sine > 1e-9, angle / (2 * sine.clamp_min(1e-9)), 0.5)[..., None]
    motion = torch.cat([rotation, step[..., :3, 3]], dim=-1)
    return torch.cat([motion.new_zeros(*motion.shape[:-2], 1, 6), motion], dim=-2).to(w2c.dtype)


def actions_of_motion(motion: Tensor, move: float = 0.01, turn: float = 0.05) -> Tensor:
    """Discrete actions that a camera's motion shows, as WorldPlay labels its data: motion [..., 6] of `relative_motion`
    -> [..., 10], 1 where the frame moved (right, left, up, down, forward, back) or turned (right, left, up, down).

    A step longer than `move` acts along each axis that it is within 60 degrees of; a turn acts above `turn` degrees.
    """
    rotation, step = motion[..., :3], motion[..., 3:]
    length = step.norm(dim=-1, keepdim=True)
    direction = torch.where(length > move, step / length.clamp_min(1e-9), 0.0)
    along = torch.stack([direction[..., 0], -direction[..., 1], direction[..., 2]], dim=-1)  # OpenCV's y points down
    turned = torch.rad2deg(
        torch.stack([rotation[..., 1], rotation[..., 0]], dim=-1)
    )  # about down: right; about right: up
    pairs = [torch.stack([x > limit, x < -limit], dim=-1) for x, limit in ((along, 0.5), (turned, turn))]
    return torch.cat(pairs, dim=-2).flatten(-2).to(motion.dtype)


def classes_of_actions(actions: Tensor) -> Tensor:
    """WorldPlay's number of ten discrete actions [..., 10] (`actions_of_motion`): 9 translation + rotation in 0..80 -> [...].
    Moves up and down it has no number for, and they are left out."""
    right, _, forward, yaw, pitch = (actions[..., 0::2] - actions[..., 1::2]).unbind(-1)

    def pair(a: Tensor, b: Tensor) -> Tensor:
        """0 neither, 1 2 a up or down, 3 4 b up or down, 5.. both."""
        one = torch.where(a != 0, 1 + (a < 0), torch.where(b != 0, 3 + (b < 0), 0))
        return torch.where((a != 0) & (b != 0), 5 + 2 * (a < 0) + (b < 0), one)

    return 9 * pair(forward, right) + pair(yaw, pitch)


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


def cameras_of(w2c: Tensor, K: Tensor) -> Cameras:
    """Cameras of whole clips: w2c [B, T, 4, 4] in any world frame, K [B, T, 4]; motion is derived."""
    return Cameras(w2c, K, relative_motion(w2c))


def cameras_of_path(path: CameraPath) -> Cameras:
    """Batch-1 camera tensors of a path (inverted in float64, then cast)."""
    w2c = invert_se3(torch.from_numpy(path.c2w))[None]
    return Cameras(w2c.float(), torch.from_numpy(path.K).float()[None], relative_motion(w2c).float())
