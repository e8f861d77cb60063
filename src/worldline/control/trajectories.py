"""minWM's trajectory strings: `w*8,l*4,wd*3` is eight latent frames forward, four turning right, three to the front right.

A segment is keys, `*`, and a number of latent frames (`w-8`, WorldPlay's way, means the same). Keys: w s forward and
back, d a right and left, u dn up and down, l j turn right and left, i k look up and down; left right up down are other
names of j l i k. Beyond minWM, keys may be held together (`wd`, `w+l`), and `_` stands still.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from worldline.control import actions
from worldline.functional.camera import integrate
from worldline.schema import Controls, WorldlineError

# minWM's step of one latent frame: model units and degrees.
MOVE, TURN = 0.08, 3.0
STILL = "_"
SPELLINGS = {
    "l": "right",
    "j": "left",
    "i": "up",
    "k": "down",
}  # minWM's letters of keys that are called otherwise here
MAX_LATENTS = 100_000  # seven hours at 16 frames a second: beyond it is a slip of the keyboard

_LETTERS = {name: letter for letter, name in SPELLINGS.items()}
_TOKEN = re.compile("|".join(sorted([*actions.MOTIONS, *SPELLINGS], key=len, reverse=True)))
_SEGMENT = re.compile(r"(?P<keys>[^*\-,]*?)\s*[*\-]\s*(?P<count>.*)", re.DOTALL)


class TrajectoryError(WorldlineError):
    """A trajectory that cannot be read or does not fit: names the token, where it stands, and the mend."""


@dataclass(frozen=True)
class Segment:
    """Keys (names of `actions.MOTIONS`) held for some latent frames; no keys: standing still."""

    keys: tuple[str, ...]
    latents: int

    def __post_init__(self) -> None:
        signs = actions.signs_of_keys(self.keys)
        if sorted(actions.keys_of_signs(signs)) != sorted(self.keys):
            raise TrajectoryError(f"keys {'+'.join(self.keys)} repeat or cancel each other; name every motion once")
        object.__setattr__(self, "keys", actions.keys_of_signs(signs))
        if not 1 <= self.latents <= MAX_LATENTS:
            raise TrajectoryError(f"{self.latents} latent frames; expected 1 to {MAX_LATENTS}")

    def format(self) -> str:
        """The segment in minWM's letters."""
        return "".join(_LETTERS.get(k, k) for k in self.keys or (STILL,)) + f"*{self.latents}"


@dataclass(frozen=True)
class Trajectory:
    """Segments, one after the other, from a start at the identity pose."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments or self.latents > MAX_LATENTS:
            raise TrajectoryError(
                f"{len(self.segments)} segments; expected at least one, {MAX_LATENTS} latents at most"
            )

    @property
    def latents(self) -> int:
        """T: the latent frames of the whole clip, its start included."""
        return 1 + sum(s.latents for s in self.segments)

    def format(self) -> str:
        """The string; `parse` gives an equal trajectory back."""
        return ",".join(s.format() for s in self.segments)

    def signs(self) -> np.ndarray:
        """The action of every latent frame, int8 [T, 5] (`control.actions`)."""
        rows = [actions.signs_of_keys(s.keys) for s in self.segments for _ in range(s.latents)]
        return np.array([(0,) * len(actions.AXES), *rows], dtype=np.int8)

    def poses(self, move: float = MOVE, turn: float = TURN) -> np.ndarray:
        """c2w float64 [T, 4, 4] of the latent frames, as minWM makes them: a step turns by yaw, then pitch, then moves
        along the new axes, all at once. move: model units, turn: degrees, of a latent frame."""
        poses = [np.eye(4)]
        for right, up, forward, yaw, pitch in self.signs()[1:].tolist():
            poses.append(integrate(poses[-1], turn * yaw, turn * pitch, (move * right, move * up, move * forward)))
        return np.stack(poses)

    def controls(self, stride: int, turn: float = TURN) -> Controls:
        """The held keys of (T - 1) stride pixel frames. turn: degrees of a latent frame."""
        return actions.decode(self.signs(), stride, turn / stride)


def parse(text: str) -> Trajectory:
    """Read a string. Raises TrajectoryError, naming the first token that is wrong and its character, counted from 1."""
    segments, start = [], 0
    for part in text.split(","):
        at = start + len(part) - len(part.lstrip())
        segments.append(_segment(text, part.strip(), at))
        start += len(part) + 1
    try:
        return Trajectory(tuple(segments))
    except TrajectoryError as error:
        raise TrajectoryError(f"trajectory {_short(text)}: {error}") from error


def of_controls(controls: Controls, stride: int, turn: float = TURN) -> Trajectory:
    """The trajectory of whole latents of held keys. turn: degrees of a latent frame.

    Raises TrajectoryError where the controls are of another kind: half speeds, a mouse, keys changed within a latent.
    """
    signs = actions.encode(controls, stride, turn / stride)
    again = actions.decode(signs, stride, turn / stride)
    apart = np.abs(again.move - controls.move).max(axis=1) + np.abs(again.look - controls.look).max(axis=1)
    if len(apart) and apart.max() > 1e-4:
        at = int(np.argmax(apart > 1e-4))
        raise TrajectoryError(
            f"control row {at} (move {controls.move[at].tolist()}, look {controls.look[at].tolist()}) is no held keys at "
            f"{turn} degrees a latent of {stride} frames; save the session or a key log instead of a string"
        )
    rows = [actions.keys_of_signs(row) for row in signs[1:].tolist()]
    return Trajectory(tuple(Segment(keys, len(list(same))) for keys, same in groupby(rows)))


def _segment(text: str, part: str, at: int) -> Segment:
    """The segment that stands at character `at` (from 0) of `text`."""
    if not part:
        raise _error(text, "nothing", at, "expected a segment such as w*8; drop the extra comma")
    found = _SEGMENT.fullmatch(part)
    if found is None:
        raise _error(text, repr(part), at, f"has no number of latent frames; write {part}*1")
    count, where = found["count"], at + found.start("count")
    if not (count.isascii() and count.isdigit()):
        raise _error(
            text,
            repr(count) if count else "nothing",
            where,
            "is no whole number of latent frames; write one such as w*8",
        )
    keys = _keys(text, found["keys"], at)
    try:
        return Segment(keys, int(count))
    except TrajectoryError as error:
        raise _error(text, repr(part), at, f"is refused: {error}") from error


def _keys(text: str, word: str, at: int) -> tuple[str, ...]:
    """`wd` or `w+left` as key names."""
    if word == STILL:
        return ()
    if not word:
        raise _error(text, "nothing", at, f"stands where keys are expected; write {STILL}*n to stand still")
    names, i = [], 0
    while i < len(word):
        found = _TOKEN.match(word, i)
        if found is None:
            valid = [*actions.MOTIONS, *SPELLINGS]
            near = difflib.get_close_matches(word.lower(), valid, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            keys = " ".join(sorted(valid, key=lambda k: (len(k), k)))
            raise _error(text, repr(word[i:]), at + i, f"is no key; {hint}expected some of {keys}, or {STILL} for none")
        names.append(SPELLINGS.get(found[0], found[0]))
        i = found.end()
        if i < len(word) - 1 and word[i] == "+":
            i += 1
    return tuple(names)


def _error(text: str, token: str, at: int, what: str) -> TrajectoryError:
    return TrajectoryError(f"trajectory {_short(text)}: {token} at character {at + 1} {what}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
