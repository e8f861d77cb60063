"""A streamed walk: order of events, determinism, independence, failure, and the session as a value."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
import torch
from tests.tiny_world import HEIGHT, WIDTH, tiny_wan_vae, write_tiny_world

from worldline.functional.camera import cameras_of
from worldline.rollout.loop import ChunkLoop
from worldline.schema import Controls, ShapeError, WorldlineError
from worldline.stream import moment as moment_module
from worldline.stream.engine import Engine
from worldline.stream.session import BusyError, NonFiniteError, Session


def controls(seed: int, rows: int = 4) -> Controls:
    rng = np.random.default_rng(seed)
    look = np.zeros((rows, 3))
    look[:, 0] = rng.uniform(-2, 2)
    return Controls(np.tile(rng.integers(-1, 2, 3) * (1, 0, 1), (rows, 1)), look)


def first_latent(session: Session) -> torch.Tensor:
    return moment_module.start_latent(session.engine, session.log.image)[0, 0]


def walk(session: Session, seeds) -> np.ndarray:
    return np.concatenate([session.step(controls(s)) for s in seeds])


def test_a_step_gives_a_chunk_of_frames(engine):
    session = engine.session("hall")
    assert session.first_frame.shape == (HEIGHT, WIDTH, 3)
    assert session.frame_index == 1
    frames = session.step(controls(0))
    assert frames.shape == (4, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert session.frame_index == 5
    assert frames.std() > 1


def test_chunks_of_three_latents_take_twelve_rows(tmp_path):
    engine = Engine.load(write_tiny_world(tmp_path, chunk=3, window=6), dtype="float32", threads=1, warm=False)
    assert engine.session().step(controls(0, 12)).shape == (12, HEIGHT, WIDTH, 3)


def test_the_session_is_the_one_loop(engine):
    """Frames of a walk equal those of one ChunkLoop on the same noise, cameras and codec, past the window."""
    session = engine.session("hall", seed=3)
    seeds = range(9)
    frames = walk(session, seeds)

    latents = torch.stack([first_latent(session), *(z[0] for z in session.log.latents)])
    reference = engine.session("hall", seed=3)
    camera = reference._now.camera
    path = camera.extend(Controls.concat([controls(s) for s in seeds]))
    w2c = np.linalg.inv(np.concatenate([np.eye(4)[None], path.c2w[3::4]]))
    cameras = cameras_of(torch.from_numpy(w2c).float()[None], torch.from_numpy(path.K[:1]).float().expand(1, 10, 4))
    loop = ChunkLoop(engine.model, engine.config.plan, engine.text("a hall"))
    with torch.no_grad():
        # Teacher-forced on the session's own latents: each chunk must come out as the session made it.
        loop.commit(latents[None, :1], cameras[:1])
        for t in range(1, 10):
            digest = hashlib.sha256(f"3/{t}/0".encode()).digest()
            g = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            noise = torch.randn(1, 1, *latents.shape[1:], generator=g)
            x0 = loop.denoise(noise, cameras[t : t + 1], generator=g)
            torch.testing.assert_close(x0[0, 0], latents[t], atol=1e-4, rtol=1e-4)
            loop.commit(latents[None, t : t + 1], cameras[t : t + 1])
        video = engine.codec.decode(latents[None])[0, 1:]
    np.testing.assert_allclose(frames, moment_module.to_uint8(video), atol=1)


def test_a_seed_is_a_walk(engine):
    again = walk(engine.session("hall", seed=5), range(4))
    np.testing.assert_array_equal(walk(engine.session("hall", seed=5), range(4)), again)
    assert np.abs(walk(engine.session("hall", seed=6), range(4)).astype(int) - again).max() > 8


def test_controls_and_prompt_and_start_reach_the_picture(engine):
    base = walk(engine.session("hall"), [0, 0, 0]).astype(int)
    assert np.abs(walk(engine.session("hall"), [1, 2, 3]) - base).max() > 2
    assert np.abs(walk(engine.session("hall", prompt="a bright cave"), [0, 0, 0]) - base).max() > 2
    assert np.abs(walk(engine.session("cellar", prompt="a hall"), [0, 0, 0]) - base).max() > 8


def test_pixels_come_before_the_commit(engine):
    session = engine.session("hall")
    calls: list[str] = []
    loop_commit = session._now.loop.commit
    session._now.loop.commit = lambda *a: (calls.append("commit"), loop_commit(*a))[1]
    session.step(controls(0))
    calls.append("pixels")
    session.commit()
    session.commit()  # nothing is left to do
    session.step(controls(1))
    calls.append("pixels")
    session.step(controls(2))
    assert calls == ["pixels", "commit", "pixels", "commit"]


def test_explicit_and_lazy_commits_give_the_same_walk(engine):
    lazy, eager = engine.session("hall"), engine.session("hall")
    for s in range(5):
        np.testing.assert_array_equal(lazy.step(controls(s)), eager.step(controls(s)))
        eager.commit()


def test_interleaved_sessions_equal_sequential_ones(engine):
    alone = [walk(engine.session(n, seed=i), range(6)) for i, n in enumerate(("hall", "cellar"))]
    together = [engine.session(n, seed=i) for i, n in enumerate(("hall", "cellar"))]
    got = [[s.step(controls(i)) for s in together] for i in range(6)]
    for i in range(2):
        np.testing.assert_array_equal(np.concatenate([g[i] for g in got]), alone[i])


def test_a_poisoned_model_is_refused_and_the_session_survives(engine):
    session, control = engine.session("hall"), engine.session("hall")
    for s in (session, control):
        walk(s, range(2))
    control_next = control.step(controls(2))
    weight = engine.model.proj_out.bias
    kept = weight.detach().clone()
    session.commit()
    with torch.no_grad():
        weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="3 draws"):
        session.step(controls(2))
    assert session.frame_index == 9
    with torch.no_grad():
        weight.copy_(kept)
    np.testing.assert_array_equal(session.step(controls(2)), control_next)


def test_one_bad_draw_is_drawn_again(engine, monkeypatch):
    session = engine.session("hall")
    real, calls = session._now.loop.denoise, []

    def once_bad(*args, **kwargs):
        calls.append(1)
        x0 = real(*args, **kwargs)
        return x0 * float("inf") if len(calls) == 1 else x0

    monkeypatch.setattr(session._now.loop, "denoise", once_bad)
    assert session.step(controls(0)).std() > 1
    assert len(calls) == 2
    assert all(torch.isfinite(z).all() for z in session.log.latents)


def test_wrong_rows_change_nothing(engine):
    session, control = engine.session("hall"), engine.session("hall")
    with pytest.raises(ShapeError, match="expected 4"):
        session.step(controls(0, rows=3))
    with pytest.raises(WorldlineError, match="roll"):
        session.step(Controls(np.zeros((4, 3)), np.ones((4, 3))))
    np.testing.assert_array_equal(session.step(controls(0)), control.step(controls(0)))


def test_a_session_is_not_stepped_twice_at_once(engine):
    session = engine.session("hall")
    inside, leave = threading.Event(), threading.Event()
    real = session._now.loop.denoise

    def slow(*args, **kwargs):
        inside.set()
        leave.wait(5)
        return real(*args, **kwargs)

    session._now.loop.denoise = slow
    worker = threading.Thread(target=session.step, args=(controls(0),))
    worker.start()
    inside.wait(5)
    with pytest.raises(BusyError):
        session.step(controls(0))
    leave.set()
    worker.join(5)
    assert session.frame_index == 5


def test_reset_starts_over(engine):
    session = engine.session("hall", seed=4)
    first = walk(session, range(3))
    session.set_prompt("a flooded cave")
    session.reset()
    assert session.prompt == "a hall"
    np.testing.assert_array_equal(walk(session, range(3)), first)
    session.reset(image=engine.starts["cellar"].image, prompt="a cellar", seed=9)
    np.testing.assert_array_equal(walk(session, range(3)), walk(engine.session("cellar", seed=9), range(3)))


def test_a_prompt_holds_from_the_next_chunk(engine):
    session, control = engine.session("hall"), engine.session("hall")
    np.testing.assert_array_equal(session.step(controls(0)), control.step(controls(0)))
    session.set_prompt("a flooded cave")
    assert session.prompt == "a flooded cave"
    assert np.abs(session.step(controls(1)).astype(int) - control.step(controls(1))).max() > 0
    with pytest.raises(WorldlineError, match="characters"):
        session.set_prompt("x" * 10_000)


def test_a_fork_and_its_origin_part(engine):
    session = engine.session("hall")
    walk(session, range(3))
    other = session.fork()
    ahead = walk(session, (3, 4))
    np.testing.assert_array_equal(walk(other, (3, 4)), ahead)
    assert len(other.log.controls) == len(session.log.controls) == 5


@pytest.mark.parametrize("latents", [False, True])
def test_a_saved_session_goes_on_as_the_original(engine, tmp_path, latents):
    session = engine.session("cellar", seed=2)
    walk(session, range(3))
    session.set_prompt("a bright cave")
    walk(session, range(3, 6))
    session.save(tmp_path / "walk.safetensors", latents=latents)
    loaded = Session.load(engine, tmp_path / "walk.safetensors")
    assert (loaded.frame_index, loaded.prompt) == (session.frame_index, "a bright cave")
    np.testing.assert_array_equal(walk(loaded, (6, 7)), walk(session, (6, 7)))


def test_a_fresh_session_can_be_saved(engine, tmp_path):
    engine.session("hall", seed=2).save(tmp_path / "walk.safetensors")
    assert Session.load(engine, tmp_path / "walk.safetensors").frame_index == 1


def test_foreign_files_are_refused(engine, tmp_path):
    path = tmp_path / "walk.safetensors"
    engine.session("hall").save(path)
    engine.weights = "000000000000"
    with pytest.raises(WorldlineError, match="was walked in world"):
        Session.load(engine, path)
    path.write_bytes(b"nothing")
    with pytest.raises(WorldlineError, match="not readable"):
        Session.load(engine, path)
    with pytest.raises(WorldlineError, match="not readable"):
        Session.load(engine, tmp_path / "absent")


def test_rewind_forgets_the_last_chunks(engine):
    session = engine.session("hall")
    walk(session, range(2))
    after = walk(session, (2, 3))
    session.rewind(2)
    assert session.frame_index == 9
    np.testing.assert_array_equal(walk(session, (2, 3)), after)
    with pytest.raises(WorldlineError, match="expected 0 to"):
        session.rewind(99)


def test_a_codec_with_a_long_memory_streams_forks_and_rewinds(tmp_path):
    engine = Engine.load(write_tiny_world(tmp_path, codec=tiny_wan_vae()), threads=1, warm=False)
    session = engine.session("hall")
    walk(session, range(3))
    other = session.fork()
    after = walk(session, (3, 4))
    np.testing.assert_array_equal(walk(other, (3, 4)), after)
    session.rewind(2)
    np.testing.assert_array_equal(walk(session, (3, 4)), after)
    assert np.abs(after[0].astype(int) - after[-1]).max() > 2  # frames that tell states apart


def test_a_long_walk_is_reanchored_and_looks_the_same(engine, monkeypatch):
    far = Controls(np.tile((0, 0, 1), (4, 1)), np.tile((2, 0, 0), (4, 1)))
    plain = engine.session("hall")
    frames = [plain.step(far) for _ in range(6)]
    monkeypatch.setattr(moment_module, "REANCHOR_AT", 0.05)
    moved = engine.session("hall")
    for frame in frames:
        np.testing.assert_allclose(moved.step(far), frame, atol=2)
    assert np.linalg.norm(moved._now.camera._anchor[:3, 3]) > 0.05
