"""Thousands of frames: the world is moved to the player, and what he sees does not notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny_world import write_tiny_world

from worldline.functional.camera import cameras_of_path
from worldline.rollout.loop import ChunkLoop
from worldline.schema import CameraPath, Controls
from worldline.stream import moment as moment_module
from worldline.stream.engine import Engine

AHEAD = Controls(np.tile((0.2, 0, 1), (4, 1)), np.tile((0.3, 0, 0), (4, 1)))


def far_off(engine: Engine, chunks: int) -> tuple[float, float]:
    """(How far the last chunk is from the one made in a frame that begins with what it can see, distance from the anchor).

    The reference is a loop that gets the walk's last latents under poses relative to the first of them, in float64: it has
    never been far from its origin.
    """
    session = engine.session("hall", seed=1)
    poses = [session.pose]
    for _ in range(chunks):
        session.step(AHEAD)
        poses.append(session.pose)
    session.commit()
    before = session._now
    with engine.compute():
        drawn = before.draw(AHEAD, session._log.seed, 0)

    near = 16  # two layers of attention reach 2 x 3 latents back
    local = np.linalg.inv(poses[-near]) @ np.stack([*poses[-near:], drawn.camera.world_pose()])
    cameras = cameras_of_path(CameraPath(local, before.camera.K))
    loop = ChunkLoop(engine.model, engine.config.plan, before.text, cache="ring")
    with torch.inference_mode():
        for i in range(1, near):
            latents = session._log.latents[chunks - near + i][None].float()
            loop.commit(latents, cameras[i : i + 1])
        noise, generator = moment_module.noise_of(engine, session._log.seed, before.chunks, 0)
        wanted = loop.denoise(noise, cameras[near : near + 1], generator=generator)
    return float((drawn.latents - wanted).norm() / wanted.norm()), float(np.linalg.norm(before.camera.pose[:3, 3]))


@pytest.fixture
def branching(tmp_path) -> Engine:
    """A world whose cameras and positions do not meet (`branch`), so that a reference may begin at position 0."""
    from tests.conftest import randomise

    from worldline.models.registry import save_model
    from worldline.models.wan import WanConfig, WanModel

    world = write_tiny_world(tmp_path)
    sizes = dict(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=6, in_channels=4, out_channels=4)
    save_model(randomise(WanModel(WanConfig(**sizes, freq_dim=16, camera="branch")), std=0.25), world)
    return Engine.load(world, dtype="float32", threads=1, warm=False)


def test_a_walk_far_from_its_start_sees_as_near_it(branching, monkeypatch):
    error, distance = far_off(branching, 60)
    assert error < 1e-4
    assert distance <= moment_module.REANCHOR_AT + 0.8
    monkeypatch.setattr(moment_module, "REANCHOR_AT", float("inf"))
    without, distance = far_off(branching, 60)
    assert distance > 20
    assert without > 3 * error


@pytest.mark.slow
def test_thousands_of_frames_ahead(branching):
    """4,000 frames, 800 units straight ahead."""
    error, distance = far_off(branching, 1000)
    assert error < 1e-4
    assert distance <= moment_module.REANCHOR_AT + 0.8


def test_cameras_stay_rigid_over_a_long_walk(branching):
    """The integrator's own numbers: ten thousand frames of turning and walking, anchored anew all the way."""
    camera = branching.session("hall")._now.camera
    rows = Controls(np.tile((0.5, 0, 1), (40, 1)), np.tile((2.9, 0.1, 0), (40, 1)))
    for _ in range(250):
        camera.extend(rows)
        world = camera.world_pose()
        camera.rebase()
    assert np.abs(camera.pose - np.eye(4)).max() < 1e-9
    assert np.abs(world[:3, :3] @ world[:3, :3].T - np.eye(3)).max() < 1e-12
