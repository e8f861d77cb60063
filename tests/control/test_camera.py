"""Controls to cameras: the data source's law of motion, the gauge and the anchor."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.control.camera import CameraIntegrator
from worldline.schema import Controls, WorldlineError

K = np.array([0.44, 0.67, 0.5, 0.5])
SCALE, WALK = 0.005, 4.0


def controls(frames: int, move=(0, 0, 0), look=(0, 0, 0)) -> Controls:
    return Controls(np.tile(move, (frames, 1)), np.tile(look, (frames, 1)))


def walker() -> CameraIntegrator:
    return CameraIntegrator(K, SCALE, WALK)


def mixed() -> Controls:
    """Walk, turn while walking, strafe while turning back, coast."""
    return Controls.concat(
        [controls(2, (0, 0, 1)), controls(3, (0, 0, 1), (5, 0, 0)), controls(2, (1, 0, 0), (-7, 0, 0)), controls(7)]
    )


def test_it_starts_at_the_identity_and_stays_while_nothing_is_pressed():
    path = walker().extend(Controls.still(3))
    np.testing.assert_array_equal(path.c2w, np.tile(np.eye(4), (3, 1, 1)))
    np.testing.assert_array_equal(path.K, np.tile(K, (3, 1)))


def test_held_walking_approaches_full_speed_and_coasts_to_a_stop():
    w = walker()
    z = w.extend(controls(80, (0, 0, 1))).c2w[:, 2, 3] / SCALE
    assert np.diff(z)[0] < np.diff(z)[1] < WALK
    assert np.diff(z)[-1] == pytest.approx(WALK, rel=1e-4)
    coast = np.diff(w.extend(controls(80)).c2w[:, 2, 3] / SCALE)
    assert coast[0] < WALK
    assert coast[-1] < 1e-4


def test_axes_follow_opencv():
    right = walker().extend(controls(4, (1, 0, 0))).c2w[-1]
    up = walker().extend(controls(4, (0, 1, 0))).c2w[-1]
    assert right[0, 3] > 0
    assert up[1, 3] < 0
    turned = walker().extend(controls(9, look=(10, 0, 0))).c2w[-1]
    np.testing.assert_allclose(turned[:3, 2], (1, 0, 0), atol=1e-12)  # a quarter turn right looks along +x
    looked = walker().extend(controls(3, look=(0, 10, 0))).c2w[-1]
    assert looked[1, 2] < 0


def test_a_turn_acts_before_the_move_and_velocity_keeps_its_direction():
    first = walker().extend(controls(1, (0, 0, 1), (90, 0, 0))).c2w[0]
    assert first[0, 3] > 0
    assert first[2, 3] == pytest.approx(0, abs=1e-12)
    w = walker()
    w.extend(controls(20, (0, 0, 1)))
    before = w.pose
    after = w.extend(controls(1, look=(90, 0, 0))).c2w[0]
    assert after[2, 3] > before[2, 3]  # still sliding the old way
    assert after[0, 3] == pytest.approx(0, abs=1e-9)


def test_pieces_continue_one_another():
    w, whole = walker(), walker().extend(mixed())
    pieces = [w.extend(mixed()[i : i + 4]).c2w for i in range(0, 14, 4)]
    np.testing.assert_allclose(np.concatenate(pieces), whole.c2w, atol=1e-12)


def test_rebase_moves_the_gauge_and_nothing_else():
    w, still = walker(), walker()
    w.extend(mixed())
    still.extend(mixed())
    motion = w.rebase()
    np.testing.assert_allclose(w.pose, np.eye(4), atol=1e-12)
    follow = controls(6, (0.5, 0, 1), (3, 1, 0))
    np.testing.assert_allclose(w.extend(follow).c2w, motion @ still.extend(follow).c2w, atol=1e-12)
    second = w.rebase()
    np.testing.assert_allclose(w.extend(follow).c2w, second @ motion @ still.extend(follow).c2w, atol=1e-12)


def test_a_fork_walks_alone():
    w = walker()
    w.extend(mixed())
    other, here = w.fork(), w.pose
    other.extend(mixed())
    np.testing.assert_array_equal(w.pose, here)


def test_the_law_is_the_games(tmp_path):
    """ViZDoom's own camera under the same controls, within its fixed-point resolution, before any wall."""
    pytest.importorskip("vizdoom")
    from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME, DoomRooms

    game = DoomRooms(3, tmp_path)
    _, path = game.play(game.random_spawn(np.random.default_rng(0)), mixed())
    game.game.close()
    expected = path.relative().c2w[1:]
    got = CameraIntegrator(K, 1.0, WALK_UNITS_PER_FRAME).extend(mixed()).c2w
    np.testing.assert_allclose(got[:, :3, 3], expected[:, :3, 3], atol=0.03)
    np.testing.assert_allclose(got[:, :3, :3], expected[:, :3, :3], atol=1e-3)


def test_wrong_input_is_named():
    with pytest.raises(WorldlineError, match="roll"):
        walker().extend(controls(1, look=(0, 0, 1)))
    with pytest.raises(WorldlineError, match="intrinsics"):
        CameraIntegrator(np.ones(3), 1, 1)
    with pytest.raises(WorldlineError, match="above 0"):
        CameraIntegrator(K, 0, 1)
