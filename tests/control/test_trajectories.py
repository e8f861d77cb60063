"""Trajectory strings against minWM's vectors; every string round-trips; errors point at the token."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldline.control import actions
from worldline.control.trajectories import Segment, Trajectory, TrajectoryError, of_controls, parse
from worldline.functional.camera import rotation_pitch, rotation_yaw
from worldline.functional.prope import projection_matrices
from worldline.schema import Controls

segments = st.builds(
    lambda signs, n: Segment(actions.keys_of_signs(signs), n),
    st.sampled_from(list(product((-1, 0, 1), repeat=5))),
    st.integers(1, 6),
)
walks = st.builds(lambda parts: Trajectory(tuple(parts)), st.lists(segments, min_size=1, max_size=5))


@pytest.mark.parametrize(
    ("key", "rotation", "position"),
    [
        ("w", np.eye(3), (0, 0, 0.08)),
        ("s", np.eye(3), (0, 0, -0.08)),
        ("d", np.eye(3), (0.08, 0, 0)),
        ("a", np.eye(3), (-0.08, 0, 0)),
        ("u", np.eye(3), (0, -0.08, 0)),
        ("dn", np.eye(3), (0, 0.08, 0)),
        ("l", rotation_yaw(3), (0, 0, 0)),
        ("j", rotation_yaw(-3), (0, 0, 0)),
        ("i", rotation_pitch(3), (0, 0, 0)),
        ("k", rotation_pitch(-3), (0, 0, 0)),
        ("right", rotation_yaw(3), (0, 0, 0)),
        ("left", rotation_yaw(-3), (0, 0, 0)),
        ("up", rotation_pitch(3), (0, 0, 0)),
        ("down", rotation_pitch(-3), (0, 0, 0)),
    ],
)
def test_one_step_of_every_key(key, rotation, position):
    poses = parse(f"{key}*1").poses()
    assert poses.dtype == np.float64
    np.testing.assert_array_equal(poses[0], np.eye(4))
    np.testing.assert_allclose(poses[1, :3, :3], rotation, atol=1e-15)
    np.testing.assert_allclose(poses[1, :3, 3], position, atol=1e-15)


def test_the_published_prope_vector():
    """w*1,l*1 with K = (.5050505, .89786756): V_1, V_2 and P_2, P_2^-1 as measured on minWM."""
    w2c = np.linalg.inv(parse("w*1,l*1").poses())
    np.testing.assert_allclose(w2c[1], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -0.08], [0, 0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(w2c[2, :3, 3], (0.004187, 0, -0.079890), atol=1e-6)
    K = torch.tensor([0.5050505, 0.89786756, 0.5, 0.5]).expand(3, 4)
    P, P_inv = projection_matrices(torch.from_numpy(w2c).float(), K)
    expected = [[0.504358, 0, -0.026432, 0.002115], [0, 0.897868, 0, 0], [0.052336, 0, 0.998630, -0.079890]]
    np.testing.assert_allclose(P[2, :3], expected, atol=1e-6)
    inverse = [[1.977287, 0, 0.052336, 0], [0, 1.113750, 0, 0], [-0.103625, 0, 0.998630, 0.08]]
    np.testing.assert_allclose(P_inv[2, :3], inverse, atol=1e-5)


def test_steps_accumulate_in_the_camera_s_own_axes():
    poses = parse("w*1,l*2,d*1").poses()
    assert len(poses) == 5
    a = np.deg2rad(6)
    np.testing.assert_allclose(poses[4, :3, :3], rotation_yaw(6), atol=1e-12)
    np.testing.assert_allclose(poses[4, :3, 3], (0.08 * np.cos(a), 0, 0.08 - 0.08 * np.sin(a)), atol=1e-12)
    # Within a step: yaw, then pitch, then the move along the new axes.
    step = parse("wli*1").poses()[1]
    R = rotation_yaw(3) @ rotation_pitch(3)
    np.testing.assert_allclose(step[:3, :3], R, atol=1e-15)
    np.testing.assert_allclose(step[:3, 3], R @ (0, 0, 0.08), atol=1e-15)


@pytest.mark.parametrize("text", ["k*19", "i*19", "i*12,j*7", "a*10,s*9", "a*10,l*9", "a*4,w*8,s*7"])
def test_nineteen_steps_are_twenty_latents(text):
    asked = parse(text)
    assert asked.latents == len(asked.poses()) == len(asked.signs()) == 20
    assert asked.format() == text


def test_other_spellings_say_the_same():
    plain = parse("wj*3,_*2,dn*1")
    assert parse(" w+left * 3 ,_-2,  dn-1 ") == plain
    assert parse("jw*3,_*2,dn*1") == plain
    assert plain.format() == "wj*3,_*2,dn*1"
    assert parse("uright*1").segments[0].keys == ("u", "right")
    assert parse("dnd*1").segments[0].keys == ("d", "dn")


@given(walks)
def test_every_trajectory_is_its_string(walk):
    again = parse(walk.format())
    assert again == walk
    assert again.format() == walk.format()
    assert np.array_equal(again.signs(), walk.signs())


@given(walks, st.sampled_from([1, 4, 8]), st.sampled_from([3.0, 8.0, 0.7]))
def test_controls_of_a_trajectory_give_it_back(walk, stride, turn):
    controls = walk.controls(stride, turn)
    assert len(controls) == (walk.latents - 1) * stride
    again = of_controls(controls, stride, turn)
    assert np.array_equal(again.signs(), walk.signs())  # neighbours that are equal are one segment now
    assert again == of_controls(again.controls(stride, turn), stride, turn)


def test_controls_turn_as_the_poses_do():
    walk = parse("l*4,i*2")
    look = walk.controls(4).look.sum(axis=0)
    np.testing.assert_allclose(look, (12, 6, 0), atol=1e-6)
    np.testing.assert_allclose(walk.poses()[-1, :3, :3], rotation_yaw(look[0]) @ rotation_pitch(look[1]), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w*8,q*4", r"'w\*8,q\*4': 'q' at character 5 is no key; expected some of a d i j k l s u w dn"),
        ("w*8, letf*4", "'etf' at character 7 is no key; did you mean left"),
        ("W*3", "'W' at character 1 is no key; did you mean w"),
        ("w*x", "'x' at character 3 is no whole number"),
        ("w*2.5", "'2.5' at character 3 is no whole number"),
        ("w*-3", "'-3' at character 3 is no whole number"),
        ("w*", "nothing at character 3 is no whole number"),
        ("w*²", "is no whole number"),
        ("w", "'w' at character 1 has no number of latent frames; write w"),
        ("w*1,,d*2", "nothing at character 5 expected a segment"),
        ("", "nothing at character 1"),
        ("*4", "nothing at character 1 stands where keys are expected; write _"),
        ("w*4,ws*2", r"'ws\*2' at character 5 is refused: keys w\+s repeat or cancel"),
        ("l+right*2", "repeat or cancel"),
        ("w*0", "is refused: 0 latent frames; expected 1 to"),
        ("w*100000", "at most"),
        ("w+*4", r"'\+' at character 2 is no key"),
        ("w d*4", "' d' at character 2 is no key; expected"),
    ],
)
def test_errors_name_the_token_its_place_and_the_mend(text, message):
    with pytest.raises(TrajectoryError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="wasdlji_+*-, 019nup", max_size=12))
def test_any_text_is_read_or_refused(text):
    message = ""
    try:
        assert parse(parse(text).format()) == parse(text)
    except TrajectoryError as error:
        message = str(error)
    assert len(message) < 400


@pytest.mark.parametrize(
    "controls",
    [
        Controls(np.tile((0, 0, 0.5), (4, 1)), np.zeros((4, 3))),
        Controls(np.eye(4)[:, :3], np.zeros((4, 3))),
        Controls(np.zeros((4, 3)), np.tile((0.3, 0, 0), (4, 1))),
        Controls(np.zeros((4, 3)), np.tile((0, 0, 1), (4, 1))),
    ],
)
def test_a_mouse_is_no_string(controls):
    with pytest.raises(TrajectoryError, match=r"control row 0 .* is no held keys at 3\.0 degrees"):
        of_controls(controls, 4)
