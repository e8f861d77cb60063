"""A player's keys, mouse and sticks, held until a chunk takes them: the latest input wins, a short tap is not lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.control.actions import CODES, NAMES, signs_of_keys
from worldline.schema import Controls
from worldline.serve.protocol import Input

DEGREES_PER_PIXEL = 0.1
DEAD_ZONE = 0.12  # of a stick; worn sticks rest beside their middle


@dataclass(frozen=True)
class Applied:
    """What acts on a chunk's frames: the newest input's sequence number, bits of held keys (bit i is NAMES[i]), and the
    motion of its first frame as in `Controls`."""

    seq: int = 0
    keys: int = 0
    move: tuple[float, float, float] = (0.0, 0.0, 0.0)  # right, up, forward
    yaw: float = 0.0  # degrees a frame
    pitch: float = 0.0


def applied(controls: Controls, seq: int) -> Applied:
    """The first row of a chunk's controls, for the header of its frames."""
    bits = sum(1 << i for i, name in enumerate(NAMES) if name in controls.keys[0])
    right, up, forward = controls.move[0].tolist()
    return Applied(seq, bits, (right, up, forward), float(controls.look[0, 0]), float(controls.look[0, 1]))


class InputState:
    """turn, max_turn: degrees a pixel frame of a held turn key, and the most a chunk may ask for."""

    def __init__(self, turn: float, max_turn: float) -> None:
        self.turn, self.max_turn = turn, max_turn
        self.seq, self.unknown = 0, 0
        self._held: frozenset[str] = frozenset()
        self._tapped: set[str] = set()
        self._axes = (0.0, 0.0, 0.0, 0.0)
        self._mouse = 0.0  # degrees not yet turned
        self._turned = 0.0  # degrees a frame by the mouse, in what was latched last
        self.fresh = False  # whether anything changed since then

    @property
    def active(self) -> bool:
        """Whether the player asks for anything."""
        return bool(self._held or self._tapped or any(self._axes) or abs(self._mouse) > 1e-6)

    def update(self, message: Input) -> None:
        """Take a message; of one that was overtaken by a later one only the mouse's travel, which adds up in any order."""
        if message.seq < self.seq:
            self._mouse += message.mouse[0] * DEGREES_PER_PIXEL
            self.fresh |= message.mouse[0] != 0
            return
        before = (self._held, self._axes)
        self.seq = message.seq
        self.unknown += sum(k not in CODES for k in message.keys)
        self._held = frozenset(CODES[k] for k in message.keys if k in CODES)
        self._tapped |= self._held - before[0]  # pressed since; what was held then has had its chunk
        left, right = _outside(*message.axes[:2]), _outside(*message.axes[2:])
        self._axes = (*left, *right)
        self._mouse += message.mouse[0] * DEGREES_PER_PIXEL
        self.fresh |= before != (self._held, self._axes) or message.mouse[0] != 0

    def latch(self, frames: int) -> Controls:
        """What acts on the next `frames` pixel frames."""
        keys = self._held | self._tapped
        self._tapped.clear()
        self.fresh = False
        right, up, forward, turn, _ = signs_of_keys(keys)
        left_x, left_y, right_x, _ = self._axes
        move = np.clip((right + left_x, up, forward - left_y), -1.0, 1.0)
        held = self.turn * turn + self.max_turn * right_x
        asked = held + self._mouse / frames
        yaw = float(np.clip(asked, -self.max_turn, self.max_turn))
        self._turned = yaw - float(np.clip(held, -self.max_turn, self.max_turn))
        # A flick turns on for one chunk more at most: a view that keeps turning feels broken.
        most, rest = self.max_turn * frames, (asked - yaw) * frames
        self._mouse = float(np.clip(rest, -most, most)) if self._mouse else 0.0
        names = tuple(n for n in NAMES if n in keys)
        return Controls(np.tile(move, (frames, 1)), np.tile((yaw, 0.0, 0.0), (frames, 1)), (names,) * frames)

    def latch_again(self, frames: int) -> Controls:
        """What acts on the last `frames` of the rows latched before, which are made again: the mouse's turn in them is taken
        back first."""
        self._mouse += self._turned * frames
        return self.latch(frames)

    def clear(self) -> None:
        """Forget taps and mouse travel (a new scene); held keys stay held."""
        self._tapped.clear()
        self._mouse = self._turned = 0.0

    def release(self) -> None:
        """Let go of everything and count inputs anew (another connection)."""
        self.clear()
        self.seq, self._held, self._axes = 0, frozenset(), (0.0, 0.0, 0.0, 0.0)


def _outside(x: float, y: float) -> tuple[float, float]:
    """A stick with its dead zone cut out: 0 at the zone's rim, 1 at full deflection, the direction kept."""
    length = float(np.hypot(x, y))
    if length <= DEAD_ZONE:
        return (0.0, 0.0)
    scale = min(1.0, (length - DEAD_ZONE) / (1 - DEAD_ZONE)) / length
    return (x * scale, y * scale)
