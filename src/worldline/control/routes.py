"""Files and strings to the route of a clip: a camera for every pixel frame, and the keys that ask for it.

What `read_route` takes:
- a trajectory string, `w*8,l*4` (`control.trajectories`), or a .txt file that holds one;
- poses as JSON: a list of c2w 4x4 matrices, or {"0": matrix, "1": matrix, ...} (a matrix may also be {"extrinsic": matrix,
  ...} or {"c2w": matrix, ...}), one for every latent frame; OpenCV axes, model units, any world frame. {"per": "pixel",
  "poses": ...} has one for every pixel frame;
- a key log, one row of held keys for every pixel frame: JSON [["w"], ["w", "left"], []], also as {"keys": [...]}, as
  session logs hold it; CSV with the keys of a row between spaces or commas, an empty line for none;
- {"codec": name, ...}: the rows of a published vocabulary (`control.codecs`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldline.control import actions, codecs, trajectories
from worldline.control.camera import CameraIntegrator
from worldline.control.trajectories import TrajectoryError
from worldline.schema import CameraPath, Controls, ShapeError

Length = Literal["error", "pad-last", "truncate", "fit"]
LENGTHS: tuple[Length, ...] = ("error", "pad-last", "truncate", "fit")
SUFFIXES = (".txt", ".json", ".csv")
ROTATION_TOLERANCE = 1e-3  # of R'R - 1, for poses printed with few digits


@dataclass(frozen=True)
class Walk:
    """How a world turns input into motion. stride: pixel frames a latent frame; walker: at the start, not moved on;
    key_turn: degrees a pixel frame of a held turn key; move, turn: model units and degrees of a step of a string."""

    stride: int
    walker: CameraIntegrator
    key_turn: float
    move: float = trajectories.MOVE
    turn: float = trajectories.TURN


@dataclass(frozen=True)
class Route:
    """c2w: float64 [F, 4, 4] in model units, the first the identity; keys: F - 1 rows, row t held from pixel frame t to
    t + 1; text: the string it came from, if any."""

    c2w: np.ndarray
    keys: tuple[tuple[str, ...], ...] = field(repr=False)
    text: str = ""

    def __post_init__(self) -> None:
        if self.c2w.ndim != 3 or self.c2w.shape[1:] != (4, 4) or len(self.keys) != len(self.c2w) - 1:
            raise ShapeError(f"poses {self.c2w.shape}, {len(self.keys)} key rows; expected [F, 4, 4] and F - 1 rows")

    def __len__(self) -> int:
        return len(self.c2w)

    @staticmethod
    def of_poses(c2w: np.ndarray, stride: int, keys: Sequence[tuple[str, ...]] | None = None, text: str = "") -> Route:
        """From the poses [T, 4, 4] of latent frames, each shown by the pixel frames of its latent. keys: one row a step;
        None reads them off the motion."""
        relative = np.linalg.inv(c2w[0]) @ c2w
        if keys is None:
            keys = [actions.keys_of_signs(row) for row in actions.signs_of_poses(relative)[1:].tolist()]
        held = np.concatenate([relative[:1], np.repeat(relative[1:], stride, axis=0)])
        return Route(held, tuple(row for row in keys for _ in range(stride)), text)

    @staticmethod
    def of_controls(controls: Controls, walk: Walk) -> Route:
        """From what a player did, by the world's own law of walking: what live play shows the model."""
        walker = walk.walker.fork()
        return Route(np.concatenate([walker.pose[None], walker.extend(controls).c2w]), controls.keys)

    def fitted(self, frames: int, length: Length = "error") -> Route:
        """The route of `frames` pixel frames. pad-last: a shorter one stays at its last pose; truncate: a longer one is
        cut; fit: either; error, and whatever the rule does not cover: TrajectoryError."""
        have = len(self)
        if length not in LENGTHS:
            raise TrajectoryError(f"length {length!r}; expected one of {', '.join(LENGTHS)}")
        if frames < 1:
            raise TrajectoryError(f"{frames} pixel frames; expected at least 1")
        mend = None
        if have < frames and length not in ("pad-last", "fit"):
            mend = "make it longer, or let it stay at its last pose (pad-last)"
        elif have > frames and length not in ("truncate", "fit"):
            mend = "make it shorter, or have it cut (truncate)"
        if mend:
            raise TrajectoryError(
                f"the trajectory has {have} pixel frames, {frames} are asked for: ask for {have}, {mend}"
            )
        short = max(frames - have, 0)
        c2w = np.concatenate([self.c2w[:frames], np.repeat(self.c2w[-1:], short, axis=0)])
        return Route(c2w, self.keys[: frames - 1] + ((),) * short, self.text)

    def cameras(self, K: np.ndarray, move_scale: float = 1.0) -> CameraPath:
        """F cameras in game units (translations / move_scale). K: normalised intrinsics [4]."""
        return CameraPath(self.c2w, np.asarray(K, dtype=np.float64)).scaled(1 / move_scale)


def read_route(source: str, walk: Walk) -> Route:
    """The route of a string or a file, see above. Raises TrajectoryError (ActionError on an unknown key)."""
    path = Path(source)
    if path.suffix.lower() not in SUFFIXES:
        return _of_string(source, walk)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TrajectoryError(f"{source} is not readable ({error}); expected a file or a string such as w*8") from error
    if path.suffix.lower() == ".txt":
        return _of_string(text.strip(), walk)
    if path.suffix.lower() == ".csv":
        rows = [line.replace(",", " ").split() for line in text.splitlines()]
        return _of_keys(source, rows[1:] if rows and rows[0] == ["keys"] else rows, walk)
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TrajectoryError(f"{source} is no JSON ({error}); expected poses or a key log") from error
    if isinstance(data, dict) and "codec" in data:
        return Route.of_controls(codecs.controls_of(data, walk.key_turn, walk.stride), walk)
    rows = data["keys"] if isinstance(data, dict) and "keys" in data else data
    if isinstance(rows, list) and all(_is_key_row(row) for row in rows):
        return _of_keys(source, rows, walk)
    return _of_matrices(source, data, walk)


def _of_string(text: str, walk: Walk) -> Route:
    asked = trajectories.parse(text)
    keys = [actions.keys_of_signs(row) for row in asked.signs()[1:].tolist()]
    return Route.of_poses(asked.poses(walk.move, walk.turn), walk.stride, keys, asked.format())


def _is_key_row(row: Any) -> bool:
    return isinstance(row, list) and all(isinstance(key, str) for key in row)


def _of_keys(source: str, rows: list[list[str]], walk: Walk) -> Route:
    if not rows:
        raise TrajectoryError(f"{source} has no rows; expected one of held keys for every pixel frame")
    for i, row in enumerate(rows):
        try:
            actions.signs_of_keys(row)
        except actions.ActionError as error:
            raise TrajectoryError(f"{source}: row {i + 1}: {error}") from error
    return Route.of_controls(actions.controls_of_keys(rows, walk.key_turn), walk)


def _of_matrices(source: str, data: Any, walk: Walk) -> Route:
    per = "latent"
    if isinstance(data, dict) and "poses" in data:
        per, data = data.get("per", per), data["poses"]
    if per not in ("latent", "pixel"):
        raise TrajectoryError(f"{source}: per {per!r}; expected latent or pixel")
    if isinstance(data, dict):
        frames = [str(i) for i in range(len(data))]
        if set(frames) != set(data):
            wrong = min(set(data) - set(frames), default="none")
            raise TrajectoryError(
                f"{source}: frame {wrong!r} of {len(data)}; expected frames 0 to {len(data) - 1}, all"
            )
        data = [data[i] for i in frames]
    if not isinstance(data, list) or len(data) < 2:
        raise TrajectoryError(f"{source}: expected rows of keys, or a list of at least two c2w 4x4 matrices")
    c2w = np.stack([_matrix(f"{source}: pose {i}", entry) for i, entry in enumerate(data)])
    if per == "latent":
        return Route.of_poses(c2w, walk.stride)
    # The keys of a pixel frame are those of its latent, so that a slow motion is seen over enough of it.
    relative, steps = np.linalg.inv(c2w[0]) @ c2w, len(c2w) - 1
    latents = relative[np.minimum(np.arange(0, steps + walk.stride, walk.stride), steps)]
    rows = [actions.keys_of_signs(row) for row in actions.signs_of_poses(latents)[1:].tolist()]
    return Route(relative, tuple(rows[t // walk.stride] for t in range(steps)))


def _matrix(place: str, entry: Any) -> np.ndarray:
    """A rigid transform [4, 4]."""
    if isinstance(entry, dict):
        entry = entry.get("extrinsic", entry.get("c2w"))
    try:
        m = np.asarray(entry, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TrajectoryError(f"{place} is no matrix ({error}); expected c2w, four rows of four numbers") from error
    if m.shape != (4, 4) or not np.isfinite(m).all():
        raise TrajectoryError(f"{place} has shape {m.shape}; expected c2w, four rows of four finite numbers")
    R = m[:3, :3]
    off = max(np.abs(R.T @ R - np.eye(3)).max(), np.abs(m[3] - (0, 0, 0, 1)).max())
    if off > ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        raise TrajectoryError(f"{place} is no rigid camera pose (off by {off:.3g}); expected a rotation, a position and a "
                              "last row 0 0 0 1")  # fmt: skip
    return m
