"""Action vocabularies of published world models by name, each both ways: our controls to its rows, and its rows to controls.

Controls are the common ground: one row a pixel-frame transition, movement in units of full walking speed, look in degrees a
frame. Three kinds of vocabulary: numbers of 81 classes a latent (HY-WorldPlay, minWM, BiWM); held keys with a mouse a pixel
frame (Matrix-Game 1 to 3); sentences a latent (Yume). What a vocabulary cannot say raises ActionError; how fast one walks,
and roll, no vocabulary says: speeds go to the nearest of none and full.

`swapped` reproduces a defect of published code in either direction: minWM's inference strings say left where its training
labels say right. A log that was made so is read with it, and a model that was driven so is driven with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from worldline.control import actions
from worldline.control.actions import ActionError, Dialect
from worldline.schema import Controls, ShapeError

SWAPPED = ":swapped"  # after a name: with left and right exchanged where one strafes


class ActionCodec(Protocol):
    """One vocabulary. turn: degrees a pixel frame of a held turn key; stride: pixel frames a latent."""

    @property
    def name(self) -> str: ...

    def encode(self, controls: Controls, *, turn: float = 2.0, stride: int = 4) -> dict[str, Any]:
        """Plain data (for JSON) by the vocabulary's own names. Raises ActionError where it has no word, ShapeError where
        rows do not fill whole latents."""

    def decode(self, said: Mapping[str, Any], *, turn: float = 2.0, stride: int = 4) -> Controls:
        """The inverse. Raises ActionError where `said` is no action of it."""


@dataclass(frozen=True)
class Classes:
    """`classes`: one of 81 a latent, 0 for latent 0."""

    name: str
    dialect: Dialect
    swapped: bool = False

    def encode(self, controls: Controls, *, turn: float = 2.0, stride: int = 4) -> dict[str, Any]:
        """controls [n stride] -> classes [1 + n]."""
        track = _strafed(actions.encode(controls, stride, turn), self.swapped)
        return {"classes": actions.class_ids(track, self.dialect).tolist()}

    def decode(self, said: Mapping[str, Any], *, turn: float = 2.0, stride: int = 4) -> Controls:
        """classes [1 + n] -> controls [n stride]."""
        track = actions.signs_of_classes(_array(said, "classes", 1), self.dialect)
        return actions.decode(_strafed(track, self.swapped), stride, turn)


@dataclass(frozen=True)
class KeysAndMouse:
    """`keyboard` and `mouse`: a row a pixel frame, which drives the step to the next one; the last row drives none.

    keys: what each keyboard column does, by our names; "" for one that is always 0. full: the mouse's (pitch up, yaw right)
    of a full turn; degrees: of look a unit of mouse, where the project says it (then `full` is not used). Mice below `dead`
    turn nothing. steers: the mouse turns left and right alone. rest: a column that is 1 where no other is, one at a time.
    """

    name: str
    keys: tuple[str, ...]
    full: float = 0.1
    degrees: float | None = None
    dead: float = 0.0
    mouse: bool = True
    steers: bool = False
    rest: bool = False
    swapped: bool = False

    def encode(self, controls: Controls, *, turn: float = 2.0, stride: int = 4) -> dict[str, Any]:
        """controls [F] -> keyboard [F + 1, K] of 0 and 1, mouse [F + 1, 2]."""
        _whole(len(controls), stride)
        track = np.zeros((len(controls), len(actions.AXES)), np.int8)
        track[:, :3] = np.where(np.abs(controls.move) >= 0.5, np.sign(controls.move), 0)
        if not self.mouse:
            track[:, 3:] = np.where(np.abs(controls.look[:, :2]) >= 0.5 * turn, np.sign(controls.look[:, :2]), 0)
        track = _strafed(track, self.swapped)
        keyboard = np.array([self._pressed(row, at) for at, row in enumerate(track.tolist())], dtype=np.int64)
        said: dict[str, Any] = {"keyboard": _and_last(keyboard.reshape(len(track), len(self.keys))).tolist()}
        if self.mouse:
            if self.steers and np.abs(controls.look[:, 1]).max(initial=0) > 0:
                raise ActionError(f"{self.name}: the mouse steers left and right alone; leave looking up and down out")
            mouse = (controls.look[:, [1, 0]].astype(np.float64) / self._degrees(turn)).round(6)
            if ((mouse != 0) & (np.abs(mouse) < self.dead)).any():
                raise ActionError(
                    f"{self.name}: a turn of less than {self.dead * self._degrees(turn):.2g} degrees a frame, which it takes for "
                    "none; turn faster, or not at all"
                )
            said["mouse"] = _and_last(mouse).tolist()
        return said

    def decode(self, said: Mapping[str, Any], *, turn: float = 2.0, stride: int = 4) -> Controls:
        """keyboard [F + 1, K], mouse [F + 1, 2] -> controls [F]."""
        keyboard = _array(said, "keyboard", 2)[:-1]
        if keyboard.shape[1] != len(self.keys) or not np.isin(keyboard, (0, 1)).all():
            raise ActionError(f"{self.name}: keyboard {keyboard.shape}; expected 0 and 1 in {len(self.keys)} columns")
        _whole(len(keyboard), stride)
        if self.rest and (keyboard.sum(axis=1) != 1).any():
            raise ActionError(f"{self.name}: rows with {sorted(set(keyboard.sum(axis=1)))} ones; expected one in each")
        if any(keyboard[:, i].any() for i, key in enumerate(self.keys) if key in _DEEDS):
            raise ActionError(f"{self.name}: jumps or attacks, which our controls cannot say; leave these rows out")
        rows = [
            [key for key, on in zip(self.keys, row, strict=True) if on and key in actions.MOTIONS] for row in keyboard
        ]
        signs = np.array([actions.signs_of_keys(row) for row in rows], np.int8).reshape(-1, len(actions.AXES))
        signs = _strafed(signs, self.swapped)
        look = np.zeros((len(signs), 3))
        look[:, :2] = turn * signs[:, 3:]
        if self.mouse:
            mouse = _array(said, "mouse", 2)[:-1].astype(np.float64)
            if mouse.shape != (len(signs), 2):
                raise ActionError(
                    f"{self.name}: mouse {mouse.shape}; expected {(len(signs), 2)} as the keyboard's rows"
                )
            mouse = np.where(np.abs(mouse) >= self.dead, mouse, 0)
            look[:, :2] = self._degrees(turn) * mouse[:, [1, 0]]
        keys = tuple(actions.keys_of_signs(row) for row in signs.tolist())
        return Controls(signs[:, :3].astype(np.float32), look, keys)

    def _degrees(self, turn: float) -> float:
        """Degrees of look a unit of mouse."""
        return turn / self.full if self.degrees is None else self.degrees

    def _pressed(self, signs: list[int], at: int) -> list[int]:
        """The keyboard's row of five signs."""
        wanted = set(actions.keys_of_signs(signs))
        if missing := wanted - set(self.keys):
            raise ActionError(f"{self.name}: frame {at} asks for {', '.join(sorted(missing))}; it has {self._words()}")
        if self.rest and len(wanted) > 1:
            raise ActionError(f"{self.name}: frame {at} holds {', '.join(sorted(wanted))}; expected one at a time")
        row = [int(key in wanted) for key in self.keys]
        return row if any(row) or not self.rest else [int(key == _REST) for key in self.keys]

    def _words(self) -> str:
        return ", ".join(key for key in self.keys if key in actions.MOTIONS) + (" and a mouse" if self.mouse else "")


@dataclass(frozen=True)
class Sentences:
    """`keys` and `mouse`: a word of each a latent, such as W+A and ↑→, and `text`, the two sentences that go into the
    caption; latent 0 stands still."""

    name: str
    swapped: bool = False

    def encode(self, controls: Controls, *, turn: float = 2.0, stride: int = 4) -> dict[str, Any]:
        """controls [n stride] -> keys, mouse and text, [1 + n] each."""
        track = _strafed(actions.encode(controls, stride, turn), self.swapped)
        if track[:, 1].any():
            raise ActionError(f"{self.name}: moves up or down, which it cannot say; leave u and dn out")
        walked = [(forward, right) for right, _, forward, _, _ in track.tolist()]
        looked = [(pitch, yaw) for *_, yaw, pitch in track.tolist()]
        keys, mouse = [_WALK[pair] for pair in walked], [_LOOK[pair] for pair in looked]
        return {"keys": keys, "mouse": mouse, "text": [WALKS[k] + LOOKS[m] for k, m in zip(keys, mouse, strict=True)]}

    def decode(self, said: Mapping[str, Any], *, turn: float = 2.0, stride: int = 4) -> Controls:
        """keys and mouse [1 + n], or text alone -> controls [n stride]."""
        if "keys" in said and "mouse" in said:
            pairs = list(zip(said["keys"], said["mouse"], strict=True))
        else:
            pairs = [self._words(str(text)) for text in said.get("text", ())]
        rows = []
        for keys, mouse in pairs:
            walk, look = _WALK_BACK.get("None" if keys == "·" else keys), _LOOK_BACK.get(mouse)
            if walk is None or look is None:
                raise ActionError(
                    f"{self.name}: {keys!r} with {mouse!r}; expected of {', '.join(WALKS)}, {' '.join(LOOKS)}"
                )
            rows.append((walk[1], 0, walk[0], look[1], look[0]))
        track = np.array(rows, np.int8).reshape(-1, len(actions.AXES))
        return actions.decode(_strafed(track, self.swapped), stride, turn)

    def _words(self, text: str) -> tuple[str, str]:
        """The words of a caption that holds both sentences."""
        found = tuple(next((w for w, said in table.items() if said in text), "") for table in (WALKS, LOOKS))
        return found[0], found[1]


# Yume's sentences, which stand behind the caption without a space, keyboard first.
WALKS = {
    "W": "Person moves forward (W).", "A": "Person moves left (A).", "S": "Person moves backward (S).",
    "D": "Person moves right (D).", "W+A": "Person moves forward and left (W+A).",
    "W+D": "Person moves forward and right (W+D).", "S+D": "Person moves backward and right (S+D).",
    "S+A": "Person moves backward and left (S+A).", "None": "Person stands still (·).",
}  # fmt: skip
LOOKS = {
    "→": "Camera turns right (→).", "←": "Camera turns left (←).", "↑": "Camera tilts up (↑).",
    "↓": "Camera tilts down (↓).", "↑→": "Camera tilts up and turns right (↑→).",
    "↑←": "Camera tilts up and turns left (↑←).", "↓→": "Camera tilts down and turns right (↓→).",
    "↓←": "Camera tilts down and turns left (↓←).", "·": "Camera remains still (·).",
}  # fmt: skip
# (forward, right) and (up, right) of each word.
_WALK_BACK = {
    "W": (1, 0), "S": (-1, 0), "D": (0, 1), "A": (0, -1), "W+D": (1, 1), "W+A": (1, -1), "S+D": (-1, 1), "S+A": (-1, -1),
    "None": (0, 0),
}  # fmt: skip
_LOOK_BACK = {
    "↑": (1, 0), "↓": (-1, 0), "→": (0, 1), "←": (0, -1), "↑→": (1, 1), "↑←": (1, -1), "↓→": (-1, 1), "↓←": (-1, -1),
    "·": (0, 0),
}  # fmt: skip
_WALK, _LOOK = {v: k for k, v in _WALK_BACK.items()}, {v: k for k, v in _LOOK_BACK.items()}

_REST, _RESERVED, _DEEDS = "no move", "", ("jump", "attack")
CODECS: dict[str, ActionCodec] = {
    codec.name: codec
    for codec in (
        Classes("worldplay", "worldplay"),
        Classes("minwm", "worldplay"),  # its training labels; its strings are minwm:swapped
        Classes("biwm", "biwm"),
        # A look of 0.05 in its Minecraft set, of 0.35 in its Unreal set.
        KeysAndMouse("matrix-game-1", ("w", "s", "a", "d", *_DEEDS), full=0.05),
        KeysAndMouse("matrix-game-1-unreal", ("w", "s", "a", "d", *_DEEDS), full=0.35),
        KeysAndMouse("matrix-game-2", ("w", "s", "a", "d")),
        KeysAndMouse("matrix-game-2-gta", ("w", "s"), steers=True),
        # Runs by itself: u and dn are its jump and slide, a and d its sides.
        KeysAndMouse(
            "matrix-game-2-templerun", (_REST, "u", "dn", "left", "right", "a", "d"), mouse=False, rest=True
        ),
        # 15 degrees a unit and nothing below 0.02, as it integrates poses.
        KeysAndMouse("matrix-game-3", ("w", "s", "a", "d", _RESERVED, _RESERVED), degrees=15.0, dead=0.02),
        Sentences("yume-1.5"),
    )
}  # fmt: skip


def codec(name: str) -> ActionCodec:
    """A vocabulary by name; with `:swapped` behind it, left and right exchanged where one strafes. Raises ActionError."""
    bare = name.removesuffix(SWAPPED)
    if bare not in CODECS:
        raise ActionError(f"action codec {name!r}; expected one of {', '.join(CODECS)}, perhaps with {SWAPPED}")
    found = CODECS[bare]
    return found if bare == name else replace(found, name=name, swapped=True)  # type: ignore[type-var]


def controls_of(said: Mapping[str, Any], turn: float, stride: int) -> Controls:
    """Controls of data that names its vocabulary: {"codec": name, ...}, perhaps with its own `turn`."""
    return codec(str(said["codec"])).decode(said, turn=float(said.get("turn", turn)), stride=stride)


def _strafed(signs: np.ndarray, swapped: bool) -> np.ndarray:
    """Five signs a row [T, 5], left and right exchanged where `swapped`; its own inverse."""
    return signs * np.array([-1, 1, 1, 1, 1], np.int8) if swapped else signs


def _and_last(rows: np.ndarray) -> np.ndarray:
    """Rows for the steps [F, K] -> rows for the frames [F + 1, K]."""
    return np.concatenate([rows, rows[-1:] if len(rows) else np.zeros((1, rows.shape[1]), rows.dtype)])


def _whole(rows: int, stride: int) -> None:
    if stride < 1 or rows % stride:
        raise ShapeError(f"{rows} control rows; expected whole latents of {stride} rows, pad or cut the rows")


def _array(said: Mapping[str, Any], key: str, axes: int) -> np.ndarray:
    if key not in said:
        raise ActionError(f"actions hold {', '.join(map(str, said)) or 'nothing'}; expected `{key}`")
    found = np.asarray(said[key])
    if found.ndim != axes or not len(found) or found.dtype.kind not in "iuf":
        raise ActionError(f"`{key}` has shape {found.shape}; expected numbers with {axes} axes, a row a frame")
    return found
