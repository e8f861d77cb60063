"""Episodes: deterministic, resumable, whole; rendered by the real engine where it is installed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from worldline.evaluate.episodes import build_episodes, other_controls, spin_controls
from worldline.evaluate.fidelity import psnr
from worldline.evaluate.response import control_response
from worldline.evaluate.yaw import expansion_between, yaw_between
from worldline.schema import Controls, WorldlineError

SIZES = {"spin_frames": 48, "walk_frames": 32}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    pytest.importorskip("vizdoom")
    root = tmp_path_factory.mktemp("episodes")
    return root, build_episodes(root, 1, seed=5, **SIZES)


def test_spin_holds_each_command_and_turns_only():
    controls = spin_controls(400, np.random.default_rng(0))
    yaw = controls.look[:, 0]
    assert set(yaw.tolist()) == {-2.0, 0.0, 2.0}
    assert not controls.move.any()
    assert not controls.look[:, 1:].any()
    held = np.diff(np.flatnonzero(np.diff(yaw)))
    assert held.min() >= 4  # neighbours may draw the same command, so a run may be longer than 13
    assert controls.keys[int(np.argmax(yaw))] == ("right",)


def test_other_controls_never_agree_with_the_first():
    asked = Controls(np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]]), np.array([[0, 0, 0], [2, 0, 0], [0, 0, 0]]))
    other = other_controls(asked)
    assert other.move[0].tolist() == [0, 0, -1]
    assert other.look[:, 0].tolist() == [0, -2, 2]


def test_frames_poses_and_controls_fit(rendered):
    spin, walk = rendered[1]
    assert spin.frames.shape == (49, 64, 96, 3)
    assert (len(spin.cameras), len(spin.controls), spin.other_frames) == (49, 48, None)
    assert walk.frames.shape == walk.other_frames.shape == (33, 64, 96, 3)
    assert np.array_equal(walk.frames[0], walk.other_frames[0])
    assert np.array_equal(walk.cameras.c2w[0], walk.other_cameras.c2w[0])
    assert not np.array_equal(walk.frames[-1], walk.other_frames[-1])
    assert spin.caption


def test_a_walk_leaves_its_start_within_a_second(tmp_path):
    pytest.importorskip("vizdoom")
    walks = [e for e in build_episodes(tmp_path, 3, spin_frames=1, walk_frames=20) if e.suite == "walk"]
    assert all(psnr(w.frames[13:17], np.repeat(w.frames[:1], 4, axis=0)).mean() < 25 for w in walks)


def test_what_is_there_is_read_back_exactly_and_what_is_lost_is_rendered_again(rendered):
    root, first = rendered
    (lost,) = root.glob("*/walk-000.json")
    lost.unlink()
    for a, b in zip(first, build_episodes(root, 1, seed=5, **SIZES), strict=True):
        assert np.array_equal(a.frames, b.frames)
        assert np.array_equal(a.cameras.c2w, b.cameras.c2w)
        assert np.array_equal(a.controls.look, b.controls.look)
        assert a.controls.keys == b.controls.keys
        assert (a.id, a.caption) == (b.id, b.caption)
    assert json.loads(lost.read_text())["suite"] == "walk"


def test_settings_do_not_share_a_folder(rendered):
    root, first = rendered
    other = build_episodes(root, 1, seed=5, spin_frames=12, walk_frames=32)
    assert len(other[0].frames) == 13
    assert len(build_episodes(root, 1, seed=5, **SIZES)[0].frames) == len(first[0].frames)


def test_the_estimator_is_right_about_the_engine(rendered):
    spin, walk = rendered[1]
    asked = spin.controls.look[:, 0].astype(float)
    turned = yaw_between(spin.frames, spin.cameras.K[0])
    assert np.abs(turned - asked).mean() < 0.1
    found = control_response([asked], [turned])
    assert (found.lag, found.gain) == (0, pytest.approx(1, abs=0.02))
    assert np.abs(expansion_between(spin.frames, spin.cameras.K[0], turned)).mean() < 0.002
    assert np.abs(yaw_between(walk.frames, walk.cameras.K[0]) - walk.controls.look[:, 0]).mean() < 0.4


def test_nonsense_is_refused(tmp_path):
    with pytest.raises(WorldlineError, match="at least 1"):
        build_episodes(tmp_path, 0)
