"""A world as an environment, and imagined walks beside real ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.stream.test_session import controls, walk
from tests.tiny_world import HEIGHT, WIDTH

from worldline.schema import Controls, ShapeError, WorldlineError
from worldline.stream.imagine import imagine, still_latent


def test_what_is_imagined_is_what_would_happen(engine):
    session = engine.session("hall", seed=3)
    walk(session, range(6))
    session.set_prompt("a flooded cave", "blend", chunks=2)
    tracks = [Controls.concat([controls(10 * k + i) for i in range(3)]) for k in range(3)]
    before = session.log
    seen = imagine(session, tracks)
    assert seen.frames is not None
    assert seen.frames.shape == (3, 12, HEIGHT, WIDTH, 3)
    assert len(session.log) == len(before)
    for k in range(3):
        other = session.fork()
        frames = np.concatenate([other.step(tracks[k][4 * i : 4 * i + 4]) for i in range(3)])
        np.testing.assert_allclose(seen.frames[k], frames, atol=1)
        torch.testing.assert_close(seen.latents[k], torch.cat(other.log.latents[-3:]), atol=1e-4, rtol=1e-4)
    assert np.abs(seen.frames[0].astype(int) - seen.frames[1]).max() > 2
    blind = imagine(session, tracks, frames=False)
    assert blind.frames is None
    assert torch.equal(blind.latents, seen.latents)
    for wrong in ([], [controls(0, rows=3)], [controls(0), controls(0, rows=8)]):
        with pytest.raises(ShapeError, match="tracks"):
            imagine(session, wrong)
    assert still_latent(session, session.last_frame).shape == engine.latent_shape


def test_gymnasium_finds_nothing_wrong(engine):
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    from worldline.stream.env import WorldEnv

    env = WorldEnv(engine, start="hall", horizon=4, render_mode="rgb_array")
    check_env(env)


def test_an_episode_is_a_walk(engine):
    pytest.importorskip("gymnasium")
    from worldline.stream.env import WorldEnv

    env = WorldEnv(engine, reward=lambda seen: float(seen.mean()), done=lambda seen: seen.max() > 255, horizon=3)
    first, info = env.reset(seed=4, options={"start": "cellar", "prompt": "a cave"})
    control = engine.session("cellar", prompt="a cave", seed=info["seed"])
    np.testing.assert_array_equal(first, control.first_frame)
    for i in range(3):
        seen, reward, done, truncated, info = env.step(np.array([0.0, 2.0, -0.5], np.float32))
        turn = -0.5 * engine.config.max_turn_deg_per_frame
        frames = control.step(Controls(np.tile((0, 0, 1), (4, 1)), np.tile((turn, 0, 0), (4, 1))))
        np.testing.assert_array_equal(info["frames"], frames)
        assert reward == pytest.approx(seen.mean())
        assert (done, truncated) == (False, i == 2)
    assert env.render() is None
    for wrong in (np.zeros(2), np.array([0.0, np.nan, 0.0])):
        with pytest.raises(WorldlineError):
            env.step(wrong)
    with pytest.raises(WorldlineError, match="options"):
        env.reset(options={"map": 3})
    for wrong in ({"render_mode": "human"}, {"horizon": 0}):
        with pytest.raises(WorldlineError, match="expected"):
            WorldEnv(engine, **wrong)
    with pytest.raises(WorldlineError, match="reset"):
        WorldEnv(engine).step(np.zeros(3))


def test_the_planner_plays_and_counts(world_dir, tmp_path, monkeypatch):
    """The example as it is, on a tiny world: what it gains on the bundled one is in docs/engine.md."""
    pytest.importorskip("gymnasium")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import plan_to_goal

    size = ["--episodes", "1", "--actions", "1", "--candidates", "3", "--rounds", "1"]
    out = ["--json", str(tmp_path / "plan.json"), "--picture", str(tmp_path / "plan.png")]
    monkeypatch.setattr(sys, "argv", ["plan_to_goal", "--world", str(world_dir), *size, *out])
    plan_to_goal.main()
    assert (tmp_path / "plan.png").stat().st_size > 100
    assert '"planner_success"' in (tmp_path / "plan.json").read_text()
