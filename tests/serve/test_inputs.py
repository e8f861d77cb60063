"""Keys, mouse and sticks to the controls of a chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.serve.inputs import DEAD_ZONE, NAMES, InputState, applied
from worldline.serve.protocol import MAX_MOUSE, Input


def state() -> InputState:
    return InputState(turn=2.0, max_turn=3.0)


def test_held_keys_act_on_every_frame_until_released():
    s = state()
    s.update(Input(1, ("KeyW", "ArrowRight")))
    for _ in range(2):
        controls = s.latch(4)
        np.testing.assert_array_equal(controls.move, np.tile((0, 0, 1), (4, 1)))
        np.testing.assert_array_equal(controls.look, np.tile((2, 0, 0), (4, 1)))
        assert controls.keys == (("w", "right"),) * 4
        shown = applied(controls, s.seq)
        assert [n for i, n in enumerate(NAMES) if shown.keys >> i & 1] == ["w", "right"]
        assert (shown.seq, shown.move, shown.yaw) == (1, (0, 0, 1), 2)
    assert s.active
    s.update(Input(2))
    assert not s.latch(4).move.any()
    assert applied(s.latch(4), s.seq).keys == 0
    assert not s.active


def test_a_tap_between_two_chunks_is_not_lost():
    s = state()
    s.update(Input(1, ("KeyA",)))
    s.update(Input(2))
    assert s.latch(4).move[0, 0] == -1
    assert s.latch(4).move[0, 0] == 0


def test_opposite_keys_cancel():
    s = state()
    s.update(Input(1, ("KeyW", "KeyS", "KeyQ", "KeyE")))
    controls = s.latch(4)
    assert not controls.move.any()
    assert not controls.look.any()


def test_the_mouse_turns_by_its_travel_within_what_the_world_knows():
    s = state()
    s.update(Input(1, (), (30, 7)))  # 3 degrees
    s.update(Input(2, (), (30, 7)))
    assert s.latch(4).look[:, 0].sum() == pytest.approx(6.0)
    assert not s.latch(4).look.any()
    s.update(Input(3, (), (9000, 0)))
    turned = [float(s.latch(4).look[:, 0].sum()) for _ in range(4)]
    assert turned == pytest.approx([12, 12, 0, 0])  # a flick is held to the fastest turn and ends a chunk later


def test_sticks_walk_and_turn_in_proportion_beyond_their_dead_zone():
    s = state()
    s.update(Input(1, (), axes=(0.0, -1.0, 1.0, 0.0)))  # forward, right
    controls = s.latch(4)
    np.testing.assert_allclose(controls.move[0], (0, 0, 1))
    assert controls.look[0, 0] == 3.0  # a full stick turns as fast as the world knows
    half = DEAD_ZONE + (1 - DEAD_ZONE) / 2
    s.update(Input(2, (), axes=(half, 0.0, -half, 0.0)))
    controls = s.latch(4)
    np.testing.assert_allclose(controls.move[0], (0.5, 0, 0), atol=1e-6)
    assert controls.look[0, 0] == pytest.approx(-1.5)
    s.update(Input(3, (), axes=(0.08, -0.08, 0.1, 0.0)))  # a worn stick at rest
    assert not s.active
    assert not s.latch(4).move.any()
    s.update(Input(4, ("KeyW",), axes=(0.0, -1.0, 0.0, 0.0)))  # both say forward
    assert s.latch(4).move[0, 2] == 1.0


def test_rows_that_are_made_again_take_newer_input_and_turn_no_further():
    s = state()
    s.update(Input(1, ("KeyW",), (20, 0)))  # 2 degrees
    first = s.latch(4)
    assert first.look[:, 0].tolist() == [0.5] * 4
    assert not s.fresh
    s.update(Input(2, ("KeyW",)))
    assert not s.fresh  # nothing changed
    s.update(Input(3, ("KeyS",)))
    assert s.fresh
    again = s.latch_again(3)
    assert again.move[:, 2].tolist() == [-1] * 3
    # One frame turned by half a degree before; the other one and a half come in what is left.
    assert again.look[:, 0].sum() == pytest.approx(1.5)
    s.update(Input(4, ("KeyS",), (10, 0)))
    last = s.latch_again(1)
    assert 0.5 + again.look[:2, 0].sum() + last.look[:, 0].sum() == pytest.approx(3.0)
    assert not s.latch(4).look.any()


def test_late_and_unknown_messages_do_no_harm():
    s = state()
    s.update(Input(5, ("KeyW",)))
    s.update(Input(4, ("KeyS",)))
    s.update(Input(6, ("KeyW", "F13", "")))
    assert (s.latch(4).move[0, 2], s.seq, s.unknown) == (1, 6, 2)
    s.release()
    s.update(Input(1))  # another connection counts anew
    assert (s.latch(4).move.any(), s.seq) == (False, 1)


axis = st.floats(-1, 1)
key = st.sampled_from(["KeyW", "KeyA", "KeyE"])
pixel = st.floats(-MAX_MOUSE, MAX_MOUSE)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.tuples(pixel, pixel), st.tuples(axis, axis, axis, axis), st.sets(key)), max_size=6),
    st.integers(1, 12),
)
def test_no_input_asks_for_more_than_the_world_knows(inputs, frames):
    s = state()
    for i, (mouse, axes, keys) in enumerate(inputs):
        s.update(Input(i, tuple(keys), mouse, axes))
    for _ in range(3):
        controls = s.latch(frames)
        assert np.abs(controls.move).max() <= 1
        assert np.abs(controls.look).max() <= 3
