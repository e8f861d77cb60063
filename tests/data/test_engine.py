"""The game as a camera: what a control does to the pose, when, and how far."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.control.camera import CameraIntegrator
from worldline.data.dataset import ClipDataset
from worldline.data.replay import Replay
from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME, DoomRooms, Spawn
from worldline.schema import CameraPath, Controls, WorldlineError

FRAMES = 12


@pytest.fixture(scope="module")
def replay():
    with Replay(1000) as engine:
        yield engine


@pytest.fixture(scope="module")
def spawn(replay: Replay) -> Spawn:
    """A place from which the longest free distance lies ahead."""
    starts = [replay.random_spawn(np.random.default_rng(i)) for i in range(40)]

    def clear(s: Spawn) -> float:
        steps, heading = np.arange(0, 1500, 16), np.deg2rad(s.angle)
        inside = [replay.level.room_at(s.x + d * np.cos(heading), s.y + d * np.sin(heading)) >= 0 for d in steps]
        return float(steps[np.argmin(inside)])

    return max(starts, key=clear)


def held(right: float = 0, forward: float = 0, yaw: float = 0, frames: int = FRAMES) -> Controls:
    return Controls(np.tile((right, 0, forward), (frames, 1)), np.tile((yaw, 0, 0), (frames, 1)))


def walk(replay: Replay, spawn: Spawn, controls: Controls) -> CameraPath:
    return replay.play(spawn, controls)[1].relative()


def yaw_right(path: CameraPath) -> np.ndarray:
    return np.degrees(np.arctan2(path.c2w[:, 0, 2], path.c2w[:, 2, 2]))


def test_the_camera_starts_where_the_spawn_says(replay, spawn):
    pose = replay.play(spawn, Controls.still(1))[1].c2w[0]
    assert pose[:2, 3] == pytest.approx((spawn.x, spawn.y))
    assert pose[2, 3] == pytest.approx(41 * 1.2)  # eye height, drawn 1.2 times as tall
    heading = np.degrees(np.arctan2(pose[1, 2], pose[0, 2]))
    assert (heading - spawn.angle + 180) % 360 - 180 == pytest.approx(0, abs=0.01)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


@pytest.mark.parametrize("rate", [2.0, -2.0, 1.0, 3.0])
def test_turning_right_swings_forward_towards_plus_x_at_once(replay, spawn, rate):
    path = walk(replay, spawn, held(yaw=rate))
    # The engine rounds a turn to 1/182 degree.
    assert yaw_right(path) == pytest.approx(rate * np.arange(FRAMES + 1), abs=0.1)
    assert np.sign(path.c2w[1, 0, 2]) == np.sign(rate)
    assert np.abs(path.c2w[:, :3, 3]).max() < 1e-6  # a turn alone does not move


@pytest.mark.parametrize(
    ("right", "forward", "axis", "sign"), [(1, 0, 0, 1), (-1, 0, 0, -1), (0, 1, 2, 1), (0, -1, 2, -1)]
)
def test_walking_goes_along_the_camera_axes(replay, spawn, right, forward, axis, sign):
    path = walk(replay, spawn, held(right, forward))
    assert sign * path.c2w[4, axis, 3] > 4
    assert np.abs(np.delete(path.c2w[4, :3, 3], axis)).max() < 0.05
    assert np.abs(yaw_right(path)).max() < 1e-6


def test_a_held_walk_reaches_the_nominal_speed_and_no_more(replay, spawn):
    path = walk(replay, spawn, held(forward=1, frames=40))
    speed = np.linalg.norm(np.diff(path.c2w[:, :3, 3], axis=0), axis=1)
    assert WALK_UNITS_PER_FRAME == 4
    assert speed[-1] == pytest.approx(4, rel=0.02)
    assert (np.diff(speed) > -1e-3).all()


def test_the_player_at_play_moves_as_the_data_did(replay, spawn):
    """The integrator that steers a streamed world keeps to the engine's path, in and out of motion."""
    K = replay.play(spawn, Controls.still(1))[1].K[0]
    asked = Controls.concat([held(forward=1, yaw=2, frames=10), held(right=1, frames=6), held(yaw=-3, frames=8)])
    truth = walk(replay, spawn, asked).c2w[1:]
    ours = CameraIntegrator(K, move_scale=1.0, walk_units_per_frame=WALK_UNITS_PER_FRAME).extend(asked).c2w
    assert np.abs(ours[:, :3, :3] - truth[:, :3, :3]).max() < 2e-3
    assert np.abs(ours[:, :3, 3] - truth[:, :3, 3]).max() < 0.5


def test_a_clip_replays_to_its_own_bytes_and_other_controls_to_other_frames(dataset: ClipDataset):
    for clip in (dataset[2], dataset.split("heldout")[3]):
        with Replay.of(clip) as engine:
            frames, path = engine.play(clip)
            np.testing.assert_array_equal(frames, clip.frames)
            np.testing.assert_array_equal(path.c2w, clip.cameras.c2w)
            np.testing.assert_array_equal(path.K, clip.cameras.K)
            other, _ = engine.play(clip, held(yaw=3))
            assert other.shape == (FRAMES + 1, *clip.frames.shape[1:])
            np.testing.assert_array_equal(other[0], clip.frames[0])
            assert np.abs(other[-1].astype(int) - clip.frames[FRAMES]).mean() > 3


def test_frames_do_not_depend_on_where_the_engine_runs_or_what_it_showed_before(tmp_path):
    """Guards the stored height of wall textures: at another height the game reads past them, and the mere length of the
    folder's name decides what it finds there. This view has such wall ends in sight."""
    start, controls = Spawn(622, 995, 157.5167551664021), Controls.concat([held(yaw=2), held(forward=1, yaw=-2)])
    shown = []
    for length in (1, 4, 24, 40):
        scratch = tmp_path / ("x" * length)
        scratch.mkdir()
        engine = DoomRooms(1024, scratch)
        if length > 4:
            engine.play(start, held(forward=-1))
        shown.append(engine.play(start, controls)[0])
        engine.close()
    for other in shown[1:]:
        np.testing.assert_array_equal(other, shown[0])


def test_replay_names_what_it_cannot_do(replay, spawn, dataset: ClipDataset):
    with pytest.raises(WorldlineError, match="of map 1001"):
        replay.play(dataset[4])
    with pytest.raises(WorldlineError, match="no controls of its own"):
        replay.play(spawn)
    with pytest.raises(WorldlineError, match="up, pitch or roll"):
        replay.play(spawn, Controls(np.zeros((2, 3)), np.tile((0, 1, 0), (2, 1))))
