"""Keys, action tracks and the numbers of published vocabularies, against their golden tables."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldline.control import actions, trajectories
from worldline.control.actions import ActionError
from worldline.functional.camera import integrate
from worldline.schema import Controls, ShapeError
from worldline.serve import inputs

EVERY = np.array([(0,) * 5, *product((-1, 0, 1), repeat=5)], dtype=np.int8)
LEVEL = EVERY[EVERY[:, 1] == 0]  # without up and down, which the 81 classes cannot say


def ids(text: str, dialect="worldplay") -> list[int]:
    return actions.class_ids(trajectories.parse(text).signs(), dialect).tolist()


def test_live_play_takes_its_keys_from_here():
    assert inputs.CODES is actions.CODES
    assert inputs.NAMES is actions.NAMES
    assert set(actions.CODES.values()) == set(actions.NAMES) <= set(actions.MOTIONS)


@pytest.mark.parametrize(
    ("keys", "signs"),
    [
        (("w", "d"), (1, 0, 1, 0, 0)),
        (("KeyS", "ArrowLeft"), (0, 0, -1, -1, 0)),
        (("a", "KeyA", "right", "up"), (-1, 0, 0, 1, 1)),
        (("w", "s", "left", "right"), (0, 0, 0, 0, 0)),
        (("dn", "down"), (0, -1, 0, 0, -1)),
        ((), (0, 0, 0, 0, 0)),
    ],
)
def test_held_keys_add_up(keys, signs):
    assert actions.signs_of_keys(keys) == signs
    assert actions.signs_of_keys(actions.keys_of_signs(signs)) == signs


def test_a_key_log_is_what_the_page_would_send():
    state = inputs.InputState(turn=2.0, max_turn=3.0)
    state.update(inputs.Input(1, ("KeyW", "KeyA", "KeyE")))
    live = state.latch(4)
    logged = actions.controls_of_keys([("w", "a", "right")] * 4, turn=2.0)
    assert np.array_equal(live.move, logged.move)
    assert np.array_equal(live.look, logged.look)
    assert live.keys == logged.keys


@pytest.mark.parametrize(("stride", "turn"), [(4, 2.0), (4, 0.75), (1, 3.0), (8, 0.1)])
def test_every_action_survives_controls_and_multi_hot(stride, turn):
    controls = actions.decode(EVERY, stride, turn)
    assert len(controls) == (len(EVERY) - 1) * stride
    assert np.array_equal(actions.encode(controls, stride, turn), EVERY)
    hot = actions.multi_hot(EVERY)
    assert hot.shape == (len(EVERY), 10)
    assert np.array_equal(hot.sum(axis=1), np.abs(EVERY).sum(axis=1))
    assert np.array_equal(actions.signs_of_multi_hot(hot), EVERY)


@pytest.mark.parametrize("dialect", ["worldplay", "biwm", "minwm-strings"])
def test_the_81_classes_name_81_actions(dialect):
    numbers = actions.class_ids(LEVEL[1:], dialect)
    assert sorted(numbers) == list(range(81))
    assert np.array_equal(actions.signs_of_classes(numbers, dialect), LEVEL[1:])
    assert np.array_equal(actions.one_hot(numbers).argmax(axis=1), numbers)
    assert actions.one_hot(numbers).sum() == 81


def test_golden_numbers():
    assert ids("w*1,s*1,d*1,a*1") == [0, 9, 18, 27, 36]
    assert ids("l*1,j*1,i*1,k*1") == [0, 1, 2, 3, 4]
    assert ids("wd*1,wa*1,sd*1,sa*1") == [0, 45, 54, 63, 72]
    assert ids("li*1,lk*1,ji*1,jk*1") == [0, 5, 6, 7, 8]
    assert ids("up*1,down*1,right*1,left*1", "biwm") == [0, 1, 2, 3, 4]
    assert ids("li*1,ji*1,lk*1,jk*1", "biwm") == [0, 5, 6, 7, 8]  # up right, up left, down right, down left
    assert ids("w*1,s*1,a*1,d*1,l*1", "minwm-strings") == [0, 9, 18, 27, 36, 1]  # minWM's strafe, swapped


def test_poses_are_labelled_as_worldplay_labels_them():
    steps = {  # yaw, pitch, (right, up, forward) -> label, measured on the published code
        (0, 0, (0.08, 0, 0)): 27, (0, 0, (-0.08, 0, 0)): 36, (0, 0, (0, 0, 0.08)): 9, (0, 0, (0.08, 0, 0.08)): 45,
        (3, 0, (0, 0, 0)): 1, (-3, 0, (0, 0, 0)): 2, (0, 3, (0, 0, 0)): 3, (0, -3, (0, 0, 0)): 4, (3, 3, (0, 0, 0)): 5,
        (0.04, 0, (0, 0, 0.009)): 0,
    }  # fmt: skip
    poses = [integrate(np.eye(4), 70, 20, (3, 2, 1))]
    for yaw, pitch, move in steps:
        poses.append(integrate(poses[-1], yaw, pitch, move))
    signs = actions.signs_of_poses(np.stack(poses))
    assert actions.class_ids(signs).tolist() == [0, *steps.values()]


@given(st.lists(st.sampled_from([tuple(r) for r in LEVEL.tolist()]), min_size=1, max_size=8))
def test_poses_of_a_string_give_its_actions_back(rows):
    track = np.array([(0,) * 5, *rows], dtype=np.int8)
    poses = [np.eye(4)]
    for right, up, forward, yaw, pitch in track[1:].tolist():
        poses.append(integrate(poses[-1], 3 * yaw, 3 * pitch, (0.08 * right, 0.08 * up, 0.08 * forward)))
    assert np.array_equal(actions.signs_of_poses(np.stack(poses)), track)


def test_a_latent_becomes_what_it_mostly_is():
    move = np.zeros((8, 3))
    move[:3, 2] = 1  # three of four rows forward, then one of four
    move[7, 2] = 1
    look = np.tile((1.1, -0.9, 0), (8, 1))  # of 2 degrees a frame
    assert actions.encode(Controls(move, look), 4, 2.0).tolist() == [[0] * 5, [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: actions.signs_of_keys(["w", "F13"]), "key 'F13'; expected some of w a s d"),
        (lambda: actions.class_ids(np.array([[0] * 5, [0, 1, 0, 0, 0]])), "latent 1 moves up"),
        (lambda: actions.class_ids(np.zeros((1, 5)), "minwm"), "dialect 'minwm'; expected one of worldplay"),
        (lambda: actions.signs_of_classes(np.array([3, 81])), r"\[3, 81\]; expected whole numbers from 0 to 80"),
        (lambda: actions.one_hot(np.array([0.5])), "expected whole numbers"),
        (lambda: actions.signs_of_multi_hot(np.ones((1, 10))), "latent 0 goes both ways along right"),
        (lambda: actions.multi_hot(np.full((2, 5), 2)), "expected signs"),
        (lambda: actions.decode(np.ones((2, 5)), 4, 1.0), "latent 0 has the action"),
        (lambda: actions.encode(Controls.still(4), 4, 0.0), "turn 0.0; expected"),
    ],
)
def test_what_cannot_be_said_is_refused(call, message):
    with pytest.raises(ActionError, match=message):
        call()


def test_rows_that_fill_no_latent_are_refused():
    with pytest.raises(ShapeError, match="6 control rows; expected whole latents of 4"):
        actions.encode(Controls.still(6), 4, 2.0)
