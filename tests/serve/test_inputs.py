"""Keys and mouse to the controls of a chunk."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.serve.inputs import NAMES, InputState
from worldline.serve.protocol import Input


def state() -> InputState:
    return InputState(turn=2.0, max_turn=3.0)


def test_held_keys_act_on_every_frame_until_released():
    s = state()
    s.update(Input(1, ("KeyW", "ArrowRight"), 0))
    for _ in range(2):
        controls, bits, seq = s.latch(4)
        np.testing.assert_array_equal(controls.move, np.tile((0, 0, 1), (4, 1)))
        np.testing.assert_array_equal(controls.look, np.tile((2, 0, 0), (4, 1)))
        assert controls.keys == (("w", "right"),) * 4
        assert [n for i, n in enumerate(NAMES) if bits >> i & 1] == ["w", "right"]
        assert seq == 1
    s.update(Input(2, (), 0))
    controls, bits, seq = s.latch(4)
    assert not controls.move.any()
    assert (bits, seq) == (0, 2)


def test_a_tap_between_two_chunks_is_not_lost():
    s = state()
    s.update(Input(1, ("KeyA",), 0))
    s.update(Input(2, (), 0))
    assert s.latch(4)[0].move[0, 0] == -1
    assert s.latch(4)[0].move[0, 0] == 0


def test_opposite_keys_cancel():
    s = state()
    s.update(Input(1, ("KeyW", "KeyS", "KeyQ", "KeyE"), 0))
    controls = s.latch(4)[0]
    assert not controls.move.any()
    assert not controls.look.any()


def test_the_mouse_turns_by_its_travel_within_what_the_world_knows():
    s = state()
    s.update(Input(1, (), 30))  # 3 degrees
    s.update(Input(2, (), 30))
    assert s.latch(4)[0].look[:, 0].sum() == pytest.approx(6.0)
    assert not s.latch(4)[0].look.any()
    s.update(Input(3, (), 9000))
    turned = [float(s.latch(4)[0].look[:, 0].sum()) for _ in range(4)]
    assert turned == pytest.approx([12, 12, 0, 0])  # a flick is held to the fastest turn and ends a chunk later


def test_late_and_unknown_messages_do_no_harm():
    s = state()
    s.update(Input(5, ("KeyW",), 0))
    s.update(Input(4, ("KeyS",), 0))
    s.update(Input(6, ("KeyW", "F13", ""), 0))
    controls, _, seq = s.latch(4)
    assert (controls.move[0, 2], seq, s.unknown) == (1, 6, 2)
