"""From controls to cameras: where a walking player looks from, pixel frame by pixel frame.

The law is that of the data source, so that a command means at play what it meant in training: a pixel frame is two
tics; a turn acts at once, before the move; every tic adds thrust, moves, and keeps 0.90625 of the velocity. Thrust is
such that held full speed approaches `walk_units_per_frame`.
"""

from __future__ import annotations

import copy

import numpy as np

from worldline.functional.camera import rotation_pitch, rotation_yaw
from worldline.schema import CameraPath, Controls, WorldlineError

FRICTION = 0.90625  # velocity kept after a tic
TICS = 2  # a pixel frame
PITCH_LIMIT = 85.0  # degrees; looking straight up has no heading


class CameraIntegrator:
    """A player's pose, continued by every call. Starts at the identity: the gauge is the first frame.

    K: normalised fx, fy, cx, cy; move_scale: model units a game unit; walk_units_per_frame: game units a pixel frame at
    full walking speed. Nothing stops the player at walls: the world is seen, not known.
    """

    def __init__(self, K: np.ndarray, move_scale: float, walk_units_per_frame: float) -> None:
        self.K = np.asarray(K, dtype=np.float64)
        if self.K.shape != (4,):
            raise WorldlineError(f"K {self.K.shape}: expected the four normalised intrinsics fx, fy, cx, cy")
        if not (move_scale > 0 and walk_units_per_frame > 0):
            raise WorldlineError(
                f"move_scale {move_scale}, walking speed {walk_units_per_frame}: expected both above 0"
            )
        self.move_scale = move_scale
        self._thrust = walk_units_per_frame * (1 - FRICTION) / TICS
        self._yaw = self._pitch = 0.0  # degrees
        self._position, self._velocity = np.zeros(3), np.zeros(3)  # game units, axes of the first frame
        self._anchor = np.eye(4)  # pose whose gauge is handed out, in the first frame's

    @property
    def pose(self) -> np.ndarray:
        """The present camera, c2w float64 [4, 4] in model units, relative to the anchor."""
        return np.linalg.inv(self._anchor) @ self.world_pose()

    def world_pose(self) -> np.ndarray:
        """The present camera in the axes of the first frame, whatever the anchor."""
        c2w = np.eye(4)
        c2w[:3, :3] = rotation_yaw(self._yaw) @ rotation_pitch(self._pitch)
        c2w[:3, 3] = self._position * self.move_scale
        return c2w

    def extend(self, controls: Controls) -> CameraPath:
        """The poses after each of F control rows, F cameras. Raises WorldlineError on roll, which nobody walks with."""
        if np.any(controls.look[:, 2]):
            raise WorldlineError(f"roll of {controls.look[:, 2].tolist()} degrees; expected 0, walkers stay upright")
        poses = [self._step(move, look) for move, look in zip(controls.move, controls.look, strict=True)]
        return CameraPath(np.stack(poses) if poses else np.zeros((0, 4, 4)), np.tile(self.K, (len(poses), 1)))

    def _step(self, move: np.ndarray, look: np.ndarray) -> np.ndarray:
        self._yaw += float(look[0])
        self._pitch = float(np.clip(self._pitch + look[1], -PITCH_LIMIT, PITCH_LIMIT))
        right, up, forward = (float(m) for m in move)
        # One walks along the heading, wherever one looks up or down; OpenCV's y points down.
        thrust = self._thrust * (rotation_yaw(self._yaw) @ np.array([right, -up, forward]))
        for _ in range(TICS):
            self._velocity = self._velocity + thrust
            self._position = self._position + self._velocity
            self._velocity = self._velocity * FRICTION
        return self.pose

    def rebase(self) -> np.ndarray:
        """Make the present pose the anchor. Returns the world motion [4, 4] that maps old coordinates to new ones:
        c2w_new = motion @ c2w_old, w2c_new = w2c_old @ inv(motion)."""
        motion = np.linalg.inv(self.pose)
        self._anchor = self.world_pose()
        return motion

    def fork(self) -> CameraIntegrator:
        """An independent continuation from the same pose (vectors are replaced by steps, never written into)."""
        return copy.copy(self)
