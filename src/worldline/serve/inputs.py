"""A player's keys and mouse, held until a chunk takes them: the latest input wins, a short tap is not lost."""

from __future__ import annotations

import numpy as np

from worldline.control.actions import CODES, NAMES, signs_of_keys
from worldline.schema import Controls
from worldline.serve.protocol import Input

DEGREES_PER_PIXEL = 0.1


class InputState:
    """turn, max_turn: degrees a pixel frame of a held turn key, and the most a chunk may ask for."""

    def __init__(self, turn: float, max_turn: float) -> None:
        self.turn, self.max_turn = turn, max_turn
        self.seq, self.unknown = 0, 0
        self._held: frozenset[str] = frozenset()
        self._tapped: set[str] = set()
        self._mouse = 0.0  # degrees not yet turned

    def update(self, message: Input) -> None:
        """Take a message; one that was overtaken by a later one is dropped."""
        if message.seq < self.seq:
            return
        self.seq = message.seq
        self.unknown += sum(k not in CODES for k in message.keys)
        self._held = frozenset(CODES[k] for k in message.keys if k in CODES)
        self._tapped |= self._held
        self._mouse += message.mouse_dx * DEGREES_PER_PIXEL

    def latch(self, frames: int) -> tuple[Controls, int, int]:
        """What acts on the next `frames` pixel frames: (controls, applied key bits, sequence of the latest input)."""
        keys = self._held | self._tapped
        self._tapped.clear()
        right, up, forward, turn, _ = signs_of_keys(keys)
        asked = self.turn * turn + self._mouse / frames
        yaw = float(np.clip(asked, -self.max_turn, self.max_turn))
        # A flick turns on for one chunk more at most: a view that keeps turning feels broken.
        most = self.max_turn * frames
        self._mouse = float(np.clip((asked - yaw) * frames, -most, most))
        names = tuple(n for n in NAMES if n in keys)
        bits = sum(1 << i for i, n in enumerate(NAMES) if n in keys)
        controls = Controls(
            np.tile((right, up, forward), (frames, 1)), np.tile((yaw, 0.0, 0.0), (frames, 1)), (names,) * frames
        )
        return controls, bits, self.seq

    def clear(self) -> None:
        """Forget taps and mouse travel (a reset); held keys stay held."""
        self._tapped.clear()
        self._mouse = 0.0
