"""Keys and discrete actions: what a key means, and the vocabularies in which published world models are told it.

An action is five signs (AXES), each -1, 0 or 1; a track of actions is int8 [T, 5], one row a latent frame, and row 0 is
all zeros as nothing drives latent 0. Everything here converts between keys, `Controls`, poses, action tracks and the
numbers an embedding is looked up with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from worldline.schema import Controls, ShapeError, WorldlineError

# KeyboardEvent.code names places on the keyboard, so WASD is where it should be on every layout.
CODES = {
    "KeyW": "w", "ArrowUp": "w", "KeyA": "a", "KeyS": "s", "ArrowDown": "s", "KeyD": "d",
    "ArrowLeft": "left", "KeyQ": "left", "ArrowRight": "right", "KeyE": "right",
}  # fmt: skip
NAMES = ("w", "a", "s", "d", "left", "right")  # the keys of live play; bit i of a frame's applied keys

AXES = ("right", "up", "forward", "yaw", "pitch")
Signs = tuple[int, int, int, int, int]
# All named keys: those of live play, and those that only a file can press.
MOTIONS: dict[str, Signs] = {
    "w": (0, 0, 1, 0, 0), "a": (-1, 0, 0, 0, 0), "s": (0, 0, -1, 0, 0), "d": (1, 0, 0, 0, 0),
    "u": (0, 1, 0, 0, 0), "dn": (0, -1, 0, 0, 0),
    "left": (0, 0, 0, -1, 0), "right": (0, 0, 0, 1, 0), "up": (0, 0, 0, 0, 1), "down": (0, 0, 0, 0, -1),
}  # fmt: skip

CLASSES = 81  # 9 translations x 9 rotations
Dialect = Literal["worldplay", "biwm", "minwm-strings"]
# (forward, right) of translation 0..8 and (yaw, pitch) of rotation 0..8 in WorldPlay's numbers.
_PAIRS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
# BiWM numbers pitch before yaw; minWM's inference strings swap the strafe directions its training labels have.
_BIWM_ROTATION = (0, 3, 4, 1, 2, 5, 7, 6, 8)
_SWAPPED_STRAFE = (0, 1, 2, 4, 3, 6, 5, 8, 7)
_AS_IS = tuple(range(9))
_DIALECTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # all are their own inverses
    "worldplay": (_AS_IS, _AS_IS),
    "biwm": (_AS_IS, _BIWM_ROTATION),
    "minwm-strings": (_SWAPPED_STRAFE, _AS_IS),
}


class ActionError(WorldlineError):
    """An action that the vocabulary asked for cannot say, or a number that is no action of it."""


# -- keys --------------------------------------------------------------------------------------------------------------


def key_name(key: str) -> str:
    """The name of a key given as its name or as a KeyboardEvent.code. Raises ActionError on any other key."""
    name = CODES.get(key, key)
    if name not in MOTIONS:
        raise ActionError(f"key {key!r}; expected some of {' '.join(MOTIONS)}, or codes such as KeyW")
    return name


def signs_of_keys(keys: Iterable[str]) -> Signs:
    """What held keys ask for together; opposite keys cancel. Raises ActionError on an unknown name."""
    held = {key_name(k) for k in keys}
    return tuple(sum(MOTIONS[k][axis] for k in held) for axis in range(len(AXES)))  # type: ignore[return-value]


def keys_of_signs(signs: Sequence[int]) -> tuple[str, ...]:
    """The keys that ask for an action, in the order of the table."""
    return tuple(
        name for name, motion in MOTIONS.items() if all(m in (0, s) for m, s in zip(motion, signs, strict=True))
    )


def controls_of_keys(rows: Sequence[Iterable[str]], turn: float) -> Controls:
    """Held keys of F pixel frames as controls [F]. turn: degrees a pixel frame of a held turn key."""
    signs = np.array([signs_of_keys(row) for row in rows], dtype=np.float32).reshape(-1, len(AXES))
    look = np.stack([turn * signs[:, 3], turn * signs[:, 4], np.zeros(len(signs))], axis=1)
    return Controls(signs[:, :3], look, tuple(tuple(key_name(k) for k in row) for row in rows))


# -- controls ----------------------------------------------------------------------------------------------------------


def encode(controls: Controls, stride: int, turn: float) -> np.ndarray:
    """The nearest action of every latent frame: F = n stride rows -> int8 [1 + n, 5].

    turn: degrees a pixel frame that count as one full turn. A latent whose mean motion along an axis is under half of
    full is still on it; a mixture of keys within a latent becomes what it mostly is. Raises ShapeError where the rows do
    not fill whole latents.
    """
    if not (stride >= 1 and turn > 0):
        raise ActionError(f"stride {stride}, turn {turn}; expected at least 1 and above 0")
    if len(controls) % stride:
        raise ShapeError(f"{len(controls)} control rows; expected whole latents of {stride} rows, pad or cut the rows")
    motion = np.concatenate([controls.move, controls.look[:, :2] / turn], axis=1, dtype=np.float64)
    mean = motion.reshape(-1, stride, len(AXES)).mean(axis=1)
    signs = np.where(np.abs(mean) >= 0.5, np.sign(mean), 0).astype(np.int8)
    return np.concatenate([np.zeros((1, len(AXES)), np.int8), signs])


def decode(signs: np.ndarray, stride: int, turn: float) -> Controls:
    """An action track int8 [1 + n, 5] as n stride rows of held keys; `encode` gives the track back exactly."""
    signs = _track(signs)
    if signs[0].any():
        raise ActionError(f"latent 0 has the action {signs[0].tolist()}; expected all zeros, nothing drives the start")
    rows = [keys_of_signs(row) for row in signs[1:].tolist() for _ in range(stride)]
    return controls_of_keys(rows, turn)


def signs_of_poses(c2w: np.ndarray, move: float = 0.01, turn: float = 0.05) -> np.ndarray:
    """The actions between consecutive poses [T, 4, 4] of latent frames, as WorldPlay labels its data: int8 [T, 5].

    A step longer than `move` (its units) acts along each axis of the pose before that it is within 60 degrees of; a
    rotation acts where its angle about y (yaw) or x (pitch) is above `turn` degrees. Roll is ignored.
    """
    c2w = np.asarray(c2w, dtype=np.float64)
    signs = np.zeros((len(c2w), len(AXES)), np.int8)
    step = np.linalg.inv(c2w[:-1]) @ c2w[1:]
    t, length = step[:, :3, 3], np.linalg.norm(step[:, :3, 3], axis=1, keepdims=True)
    cosine = t / np.maximum(length, 1e-12) * (1, -1, 1)  # OpenCV's y points down
    signs[1:, :3] = np.where((length > move) & (np.abs(cosine) > 0.5), np.sign(cosine), 0)
    angles = np.rad2deg(np.stack([-np.arcsin(step[:, 2, 0].clip(-1, 1)), np.arctan2(step[:, 2, 1], step[:, 2, 2])], 1))
    signs[1:, 3:] = np.where(np.abs(angles) > turn, np.sign(angles), 0)
    return signs


# -- numbers -----------------------------------------------------------------------------------------------------------


def class_ids(signs: np.ndarray, dialect: Dialect = "worldplay") -> np.ndarray:
    """9 translation + rotation in 0..80 for every row of a track: int64 [T].

    Translations 0..8: none, forward, back, right, left, forward right, forward left, back right, back left. Rotations in
    "worldplay" (also minWM's training labels): none, yaw right, left, pitch up, down, right up, right down, left up, left
    down; "biwm" has pitch before yaw; "minwm-strings" has left and right exchanged, as minWM's inference strings do.
    Raises ActionError on a vertical move, which none of them can say.
    """
    signs, (translations, rotations) = _track(signs), _dialect(dialect)
    if signs[:, 1].any():
        at = int(np.flatnonzero(signs[:, 1])[0])
        raise ActionError(f"latent {at} moves {'up' if signs[at, 1] > 0 else 'down'}, which the 81 actions cannot say; "
                          "leave u and dn out, or use multi_hot")  # fmt: skip
    pair = {p: i for i, p in enumerate(_PAIRS)}
    rows = [(pair[f, r], pair[y, p]) for r, _, f, y, p in signs.tolist()]
    return np.array([9 * translations[t] + rotations[r] for t, r in rows], dtype=np.int64)


def signs_of_classes(ids: np.ndarray, dialect: Dialect = "worldplay") -> np.ndarray:
    """The inverse of `class_ids`: [T] in 0..80 -> int8 [T, 5]. Raises ActionError on any other number."""
    ids, (translations, rotations) = np.asarray(ids), _dialect(dialect)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or ((ids < 0) | (ids >= CLASSES)).any():
        raise ActionError(f"action ids {ids.tolist()}; expected whole numbers from 0 to {CLASSES - 1}, one a latent")
    rows = []
    for i in ids.tolist():
        (forward, right), (yaw, pitch) = _PAIRS[translations[i // 9]], _PAIRS[rotations[i % 9]]
        rows.append((right, 0, forward, yaw, pitch))
    return np.array(rows, dtype=np.int8).reshape(-1, len(AXES))


def one_hot(ids: np.ndarray) -> np.ndarray:
    """float32 [T, 81] of action ids [T]."""
    signs_of_classes(ids)  # its checks
    return np.eye(CLASSES, dtype=np.float32)[ids]


def multi_hot(signs: np.ndarray) -> np.ndarray:
    """float32 [T, 10]: for every axis of AXES, a 1 where its positive and a 1 where its negative direction acts."""
    signs = _track(signs)
    return np.stack([signs > 0, signs < 0], axis=-1).reshape(len(signs), -1).astype(np.float32)


def signs_of_multi_hot(hot: np.ndarray) -> np.ndarray:
    """The inverse of `multi_hot`. Raises ActionError where it holds no track, such as both directions of an axis."""
    hot = np.asarray(hot)
    if hot.ndim != 2 or hot.shape[1] != 2 * len(AXES) or not np.isin(hot, (0, 1)).all():
        raise ActionError(f"multi-hot actions {hot.shape}; expected zeros and ones [T, {2 * len(AXES)}]")
    pairs = hot.reshape(len(hot), -1, 2).astype(np.int8)
    if pairs.all(axis=-1).any():
        row, axis = np.argwhere(pairs.all(axis=-1))[0].tolist()
        raise ActionError(f"latent {row} goes both ways along {AXES[axis]}; expected one direction or none")
    return pairs[..., 0] - pairs[..., 1]


def _track(signs: np.ndarray) -> np.ndarray:
    signs = np.asarray(signs)
    if signs.ndim != 2 or signs.shape[1] != len(AXES) or not np.isin(signs, (-1, 0, 1)).all():
        raise ActionError(f"action track {signs.shape}; expected signs -1, 0, 1 of shape [T, {len(AXES)}]: {AXES}")
    return signs.astype(np.int8)


def _dialect(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if name not in _DIALECTS:
        raise ActionError(f"action dialect {name!r}; expected one of {', '.join(_DIALECTS)}")
    return _DIALECTS[name]
