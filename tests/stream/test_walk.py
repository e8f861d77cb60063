"""What a walk can do beside stepping: prompts that take over in four ways, a given past, revision, going back, its film."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.stream.test_session import controls, walk
from tests.tiny_world import HEIGHT, WIDTH, tiny_wan_vae, write_tiny_world

from worldline.models.registry import load_codec, load_model
from worldline.recipes.assets import bundled
from worldline.schema import Controls, ShapeError, WorldlineError
from worldline.serve.inputs import InputState
from worldline.serve.protocol import Input
from worldline.stream import moment as moment_module
from worldline.stream.counts import Watch
from worldline.stream.engine import Engine
from worldline.stream.log import GIVEN, Prompt, SessionLog
from worldline.stream.plan import plan_of
from worldline.stream.session import NonFiniteError, ReplayError, Session
from worldline.stream.world import WorldConfig, read_starts


@pytest.fixture
def wan_engine(tmp_path):
    """A world whose codec remembers more than its last latent, in chunks of two, with a sink and moving positions."""
    world = write_tiny_world(tmp_path, codec=tiny_wan_vae(), positions="rebased")
    import dataclasses

    from worldline.functional.masks import Visibility
    from worldline.stream.world import WorldConfig

    config = WorldConfig.read(world)
    visibility = Visibility(chunk=2, window=4, sink=1, prefix=1)
    dataclasses.replace(config, visibility=visibility).write(world)
    return Engine.load(world, dtype="float32", threads=1, warm=False)


def differs(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).max())


# -- prompts


@pytest.mark.parametrize("mode", ["keep", "recache", "cut", "blend"])
def test_a_prompt_takes_over_and_everything_follows_it(engine, tmp_path, mode):
    session, control = engine.session("hall"), engine.session("hall")
    for s in (session, control):
        walk(s, range(9))
    session.set_prompt("a flooded cave", mode, chunks=2)
    assert session.prompt == "a flooded cave"
    assert session.frame_index == control.frame_index
    after = walk(session, range(9, 14))
    assert differs(after, walk(control, range(9, 14))) > 0
    session.save(tmp_path / "walk")
    for other in (Session.load(engine, tmp_path / "walk"), session.fork()):
        np.testing.assert_array_equal(walk(other, (20, 21)), walk(session.fork(), (20, 21)))
    session.rewind(5)
    assert session.prompt == "a flooded cave"
    np.testing.assert_array_equal(walk(session, range(9, 14)), after)
    session.rewind(6)
    assert session.prompt == "a hall"
    control.rewind(6)
    np.testing.assert_array_equal(walk(session, range(8, 12)), walk(control, range(8, 12)))


def test_recaching_leaves_nothing_of_the_old_prompt(engine):
    """Two walks with the same latents in sight under different prompts go on alike once both are recached."""
    latents = torch.randn(8, *engine.latent_shape)
    sessions = [engine.session("hall", prompt=p) for p in ("a red attic", "a green lawn")]
    for s in sessions:
        s.append(latents, Controls.still(32))
    keep = [s.fork() for s in sessions]
    for s in keep:
        s.set_prompt("a flooded cave")
    for s in sessions:
        s.set_prompt("a flooded cave", "recache")
    assert differs(*(s.step(controls(1)) for s in keep)) > 0
    np.testing.assert_array_equal(*(s.step(controls(1)) for s in sessions))


def test_a_cut_is_a_new_start_from_the_last_picture(engine):
    session = engine.session("hall", seed=3)
    picture = walk(session, range(5))[-1]
    np.testing.assert_array_equal(session.last_frame, picture)
    session.set_prompt("a bright attic", "cut")
    fresh = engine.session(picture, prompt="a bright attic", seed=3)
    # Its noise is that of a later chunk, so compare what the first pass sees: keys and values.
    for stream, k in session._now.loop._caches[0]._k.items():
        torch.testing.assert_close(k, fresh._now.loop._caches[0]._k[stream])
    assert len(session.log) == 5
    assert session.step(controls(0)).std() > 1


def test_a_blend_goes_from_the_old_prompt_to_the_new(engine):
    def text_of(session: Session) -> torch.Tensor:
        return session._now.loop._texts[0].layers[0][0]

    old, new = (engine.session("hall", prompt=p) for p in ("a hall", "a flooded cave"))
    session = engine.session("hall")
    session.step(controls(0))
    session.set_prompt("a flooded cave", "blend", chunks=4)
    ways = []
    for i in range(5):
        session.step(controls(i))
        ways.append(float((text_of(session) - text_of(old)).norm()))
    assert ways == sorted(ways)
    assert ways[0] > 0
    assert ways[3] == ways[4]
    torch.testing.assert_close(text_of(session), text_of(new))
    session.set_prompt("a hall", "blend", chunks=2)
    session.step(controls(0))
    session.set_prompt("a hall")
    torch.testing.assert_close(text_of(session), text_of(old))


@pytest.mark.parametrize("wrong", [{"mode": "fade"}, {"mode": "blend", "chunks": 0}, {"prompt": "x" * 9999}])
def test_a_wrong_prompt_changes_nothing(engine, wrong):
    session, control = engine.session("hall"), engine.session("hall")
    session.step(controls(0))
    control.step(controls(0))
    with pytest.raises(WorldlineError, match="prompt"):
        session.set_prompt(**{"prompt": "a cave", **wrong})
    np.testing.assert_array_equal(session.step(controls(1)), control.step(controls(1)))


# -- a given past


def test_appended_latents_are_a_walk_that_made_them(engine, tmp_path):
    made, given = engine.session("hall", seed=1), engine.session("hall", seed=1)
    frames = walk(made, range(6))
    rows = Controls.concat([controls(i) for i in range(6)])
    np.testing.assert_array_equal(given.append(torch.cat(made.log.latents), rows), frames)
    assert given.log.attempts == [GIVEN] * 6
    np.testing.assert_array_equal(given.step(controls(6)), made.step(controls(6)))
    given.save(tmp_path / "walk", latents=False)
    np.testing.assert_array_equal(Session.load(engine, tmp_path / "walk").step(controls(7)), made.step(controls(7)))


def test_appended_frames_are_seen(engine):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (8, HEIGHT, WIDTH, 3), dtype=np.uint8)
    session, control = engine.session("hall"), engine.session("hall")
    shown = session.append(pictures, Controls.still(8))
    assert shown.shape == pictures.shape
    assert session.frame_index == 9
    video = moment_module.to_video(np.concatenate([session.first_frame[None], pictures]), engine.device)
    wanted = engine.codec.encode(video)[0, 1:]
    torch.testing.assert_close(torch.cat(session.log.latents), wanted, atol=1e-5, rtol=1e-5)
    control.append(255 - pictures, Controls.still(8))
    assert differs(session.step(controls(0)), control.step(controls(0))) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda e: (torch.full((2, *e.latent_shape), float("nan")), Controls.still(8)),
        lambda e: (torch.zeros(2, *e.latent_shape), Controls.still(4)),
        lambda e: (torch.zeros(0, *e.latent_shape), Controls.still(0)),
        lambda e: (torch.zeros(2, 9, 4, 6), Controls.still(8)),
        lambda e: (np.zeros((8, HEIGHT, WIDTH, 3)), Controls.still(8)),
        lambda e: (np.zeros((7, HEIGHT, WIDTH, 3), np.uint8), Controls.still(8)),
        lambda e: (torch.zeros(2, *e.latent_shape), Controls(np.zeros((8, 3)), np.ones((8, 3)))),
    ],
)
def test_a_wrong_past_is_refused_whole(engine, wrong):
    session, control = engine.session("hall"), engine.session("hall")
    with pytest.raises(WorldlineError):
        session.append(*wrong(engine))
    assert len(session.log) == 0
    np.testing.assert_array_equal(session.step(controls(0)), control.step(controls(0)))


def test_a_past_that_fails_half_way_is_taken_back(engine, monkeypatch):
    session, control = engine.session("hall"), engine.session("hall")
    for s in (session, control):
        walk(s, range(2))
    real, calls = moment_module.Moment.shown, []

    def failing(self, drawn):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return real(self, drawn)

    monkeypatch.setattr(moment_module.Moment, "shown", failing)
    with pytest.raises(MemoryError):
        session.append(torch.randn(4, *engine.latent_shape), Controls.still(16))
    monkeypatch.undo()
    assert len(session.log) == 2
    np.testing.assert_array_equal(walk(session, (5, 6)), walk(control, (5, 6)))


# -- revision


def test_a_revised_chunk_is_the_one_that_was_meant(engine, tmp_path):
    session, control = engine.session("hall", seed=2), engine.session("hall", seed=2)
    walk(session, range(3))
    walk(control, range(2))
    for wanted in (7, 8):
        got = session.revise(controls(wanted))
    np.testing.assert_array_equal(got, control.step(controls(8)))
    np.testing.assert_array_equal(walk(session, (3, 4)), walk(control, (3, 4)))
    session.save(tmp_path / "walk", latents=False)
    Session.load(engine, tmp_path / "walk")
    session.commit()
    with pytest.raises(WorldlineError, match="pending"):
        session.revise(controls(1))
    with pytest.raises(WorldlineError, match="pending"):
        engine.session("hall").revise(controls(1))


# -- streams


def test_a_stream_is_the_steps(engine):
    alone, session = walk(engine.session("hall"), range(6)), engine.session("hall")
    np.testing.assert_array_equal(np.concatenate(list(session.stream(controls(i) for i in range(6)))), alone)
    assert session.frame_index == 25
    assert session._pending is None


def test_a_stream_left_early_is_what_was_handed_out(engine, tmp_path):
    session, control = engine.session("hall"), engine.session("hall")
    for _, _frames in zip(range(3), session.stream(controls(i) for i in range(9)), strict=False):
        pass
    walk(control, range(3))
    assert session.frame_index == control.frame_index
    np.testing.assert_array_equal(walk(session, (20, 21)), walk(control, (20, 21)))


def test_a_stream_answers_what_is_done_in_between(engine):
    session, control, got, wanted = engine.session("hall"), engine.session("hall"), [], []
    for i, frames in enumerate(session.stream(controls(i) for i in range(5))):
        got.append(frames)
        if i == 1:
            session.set_prompt("a flooded cave", "recache")
        if i == 2:
            session.rewind(1)
    for i in range(5):
        wanted.append(control.step(controls(i)))
        if i == 1:
            control.set_prompt("a flooded cave", "recache")
        if i == 2:
            control.rewind(1)
    np.testing.assert_array_equal(got, wanted)


def test_wrong_controls_end_a_stream_at_their_place(engine):
    for wrong in (controls(1, rows=3), Controls(np.zeros((4, 3)), np.ones((4, 3)))):
        session, control = engine.session("hall"), engine.session("hall")
        frames = session.stream([controls(0), controls(1), wrong, controls(2)])
        np.testing.assert_array_equal([next(frames), next(frames)], [control.step(controls(i)) for i in (0, 1)])
        with pytest.raises(WorldlineError):
            next(frames)
        np.testing.assert_array_equal(session.step(controls(5)), control.step(controls(5)))


def test_a_failing_track_or_chunk_leaves_the_walk_whole(engine, monkeypatch):
    def track():
        yield controls(0)
        yield controls(1)
        raise KeyError("end of tape")

    session, control = engine.session("hall"), engine.session("hall")
    with pytest.raises(KeyError):
        list(session.stream(track()))
    control.step(controls(0))
    assert session.frame_index == control.frame_index
    np.testing.assert_array_equal(session.step(controls(3)), control.step(controls(3)))

    real, calls = moment_module.Moment.shown, []

    def once_bad(self, drawn):
        calls.append(1)
        shown = real(self, drawn)
        return moment_module.Shown(shown.frames, shown.codec_state, "noise" if len(calls) == 3 else "")

    session = engine.session("hall")
    monkeypatch.setattr(moment_module.Moment, "shown", once_bad)
    frames = np.concatenate(list(session.stream(controls(i) for i in range(5))))
    assert session.log.attempts == [0] * 5, "what failed in the second thread was drawn again as step does"
    np.testing.assert_array_equal(frames, walk(engine.session("hall"), range(5)))


# -- going back, and seeing it again


def test_going_back_starts_from_a_kept_moment(engine):
    session = engine.session("hall")
    frames = walk(session, range(40))
    calls: list[int] = []
    engine.model.register_forward_hook(lambda *_: calls.append(1))
    session.rewind(3)
    assert len(calls) <= moment_module.EVERY
    np.testing.assert_array_equal(walk(session, (37, 38, 39)), frames[-12:])
    calls.clear()
    session.rewind(33)
    assert len(calls) <= 40
    np.testing.assert_array_equal(walk(session, range(7, 10)), frames[28:40])


def test_kept_moments_stay_within_their_bytes_and_near_the_present(engine):
    session = engine.session("hall")
    session.step(controls(0))
    one = session._now.loop.nbytes
    engine.snapshot_bytes = 4 * one
    walk(session, range(99))
    at = [m.chunks for m in session._kept]
    assert len(at) == 4
    assert at[-1] == 96
    assert at[0] < 72 < at[-2], at
    engine.snapshot_bytes = 0
    other = engine.session("hall")
    frames = walk(other, range(10))
    assert other._kept == ()
    other.rewind(2)
    np.testing.assert_array_equal(walk(other, (8, 9)), frames[-8:])


def test_frames_are_seen_again_to_the_bit(wan_engine, tmp_path):
    import av

    session, n = wan_engine.session("hall"), wan_engine.frames_per_chunk
    rows = [controls(i, rows=n) for i in range(6)]
    frames = [session.step(c) for c in rows[:3]]
    session.set_prompt("a cellar", "cut")
    frames += [session.step(c) for c in rows[3:]]
    np.testing.assert_array_equal(np.concatenate(list(session.frames())), np.concatenate(frames))
    np.testing.assert_array_equal(list(session.frames(2, 5)), frames[2:5])
    with pytest.raises(WorldlineError, match="span"):
        session.frames(2, 9)
    with av.open(str(session.record(tmp_path / "walk.mp4"))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1 + 6 * n
    with av.open(str(session.record(tmp_path / "part.mp4", 2, 4))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2 * n


def test_a_codec_with_a_long_memory_goes_back_to_the_bit(wan_engine, tmp_path):
    """Chunks of two, a sink, positions that move, past several wraps of the ring and kept moments."""
    session, n = wan_engine.session("hall"), wan_engine.frames_per_chunk
    frames = [session.step(controls(i, rows=n)) for i in range(10)]
    session.save(tmp_path / "walk", latents=True)
    session.save(tmp_path / "small")
    for other in (Session.load(wan_engine, tmp_path / name) for name in ("walk", "small")):
        other.rewind(3)
        np.testing.assert_array_equal([other.step(controls(i, rows=n)) for i in (7, 8, 9)], frames[-3:])
    assert session._now.loop._shift > 0


def test_streaming_takes_decoding_off_the_thread_that_denoises(engine):
    """What the calling thread computes for a chunk is a step and a commit less the decoding: counted, not timed."""
    stepped = engine.session("hall")
    walk(stepped, range(6))  # the ring is full
    stepped.commit()
    streamed, rows = stepped.fork(), [controls(i) for i in range(4)]
    with engine.compute():
        drawn = stepped.fork()._now.draw(rows[0], 0, 0)
        with Watch() as decoding:
            stepped._now.shown(drawn)
    with Watch() as alone:
        for own in rows:
            stepped.step(own)
            stepped.commit()
    with Watch() as calling:
        frames = list(streamed.stream(rows))
    assert decoding.counts.operations > 0
    assert alone.counts.operations - calling.counts.operations == len(rows) * decoding.counts.operations
    np.testing.assert_array_equal(frames[-1], list(stepped.frames())[-1])


# -- without latents


def test_a_walk_without_its_latents_is_walked_again(engine, tmp_path):
    session = engine.session("cellar", seed=2)
    walk(session, range(5))
    session.set_prompt("a bright cave", "blend", chunks=3)
    walk(session, range(5, 12))
    whole, small = tmp_path / "whole", tmp_path / "small"
    session.save(whole, latents=True)
    session.save(small)
    assert whole.stat().st_size - small.stat().st_size >= session.log.nbytes
    again = Session.load(engine, small)
    assert all(torch.equal(a, b) for a, b in zip(again.log.latents, session.log.latents, strict=True))
    np.testing.assert_array_equal(walk(again, (20, 21)), walk(session, (20, 21)))
    with torch.no_grad():
        engine.model.proj_out.bias += 1e-3  # another machine
    with pytest.raises(ReplayError, match=r"float32 on cpu with 1 threads, PyTorch .* latents=True"):
        Session.load(engine, small)
    Session.load(engine, whole)


def test_a_minute_is_a_hundredth_of_its_keys_and_values(tmp_path):
    """The bundled world, from each of its starts, under a gamepad that never rests."""
    world = bundled("world")
    config = WorldConfig.read(world)
    plan = plan_of(load_model(world).config, load_codec(world / config.codec).config, config, "bfloat16")
    n, chunks = plan.frames_per_chunk, round(60 * config.fps / plan.frames_per_chunk)
    inputs, rng = InputState(config.turn_deg_per_frame, config.max_turn_deg_per_frame), np.random.default_rng(0)
    rows = []
    for i in range(chunks):
        keys = tuple(rng.choice(["KeyW", "KeyA", "KeyQ"], rng.integers(0, 3), replace=False))
        inputs.update(Input(i + 1, keys, axes=tuple(rng.uniform(-1, 1, 4).round(2))))
        rows.append(inputs.latch(n))
    for start in read_starts(world / config.starts, config.height, config.width).values():
        latents = [torch.zeros(1, 8, 8, 12, dtype=torch.bfloat16)] * chunks
        log = SessionLog(start.image, 7, [Prompt(0, start.caption)], rows, latents, [0] * chunks)
        log.write(tmp_path / "walk", "0123456789ab", made="bfloat16 on cpu with 16 threads, PyTorch 2.13.0")
        assert (tmp_path / "walk").stat().st_size < 0.01 * plan.cache_bytes


# -- failures


def test_keys_and_values_gone_bad_are_made_anew(engine):
    session, control = engine.session("hall"), engine.session("hall")
    for s in (session, control):
        walk(s, range(10))
        s.commit()
    with torch.inference_mode():
        for moment in (session._now, *session._kept):
            moment.loop._caches[0]._v[0, "main"][..., 0] = float("nan")
    got = session.step(controls(10))
    assert session.log.attempts[-1] == 2
    assert got.std() > 1
    assert session._now.loop.finite
    session.rewind(1)
    np.testing.assert_array_equal(session.step(controls(10)), control.step(controls(10)))


def test_a_commit_that_fails_is_mended_by_the_next_call(engine, monkeypatch):
    session, control = engine.session("hall"), engine.session("hall")
    for s in (session, control):
        walk(s, range(3))
    real = engine.model.forward

    def failing(*args, **kwargs):
        real(*args, **kwargs)
        raise MemoryError

    monkeypatch.setattr(engine.model, "forward", failing)
    for call in (session.commit, lambda: session.step(controls(3)), lambda: session.set_prompt("a cave")):
        with pytest.raises(MemoryError):
            call()
    monkeypatch.undo()
    assert session.prompt == "a hall"
    np.testing.assert_array_equal(walk(session, (3, 4)), walk(control, (3, 4)))


def test_a_rewind_that_fails_leaves_the_walk(engine, monkeypatch):
    session, control = engine.session("hall"), engine.session("hall")
    for s in (session, control):
        walk(s, range(5))
    monkeypatch.setattr(engine.model, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.rewind(2)
    monkeypatch.undo()
    np.testing.assert_array_equal(session.step(controls(5)), control.step(controls(5)))


def test_a_codec_gone_bad_is_named(engine):
    session = engine.session("hall")
    for p in engine.codec.decoder.parameters():
        p.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="pixels from the codec"):
        session.step(controls(0))
    assert session.frame_index == 1


@pytest.mark.parametrize("part", ["about", "controls", "image", "latents", "cuts"])
def test_a_damaged_file_is_refused(engine, tmp_path, part):
    from safetensors import safe_open
    from safetensors.torch import save_file

    session = engine.session("hall")
    walk(session, range(3))
    session.set_prompt("a cave", "cut")
    path = tmp_path / "walk"
    session.save(path, latents=True)
    with safe_open(str(path), framework="pt") as file:
        tensors, about = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    damaged = tensors[part].clone()
    for spoilt in (
        damaged[: len(damaged) // 2],
        damaged * 0 + (float("nan") if damaged.is_floating_point() else 3),
        None,
    ):
        some = {k: v for k, v in tensors.items() if k != part} | ({} if spoilt is None else {part: spoilt.contiguous()})
        save_file(some, path, metadata=about)
        with pytest.raises(WorldlineError):
            Session.load(engine, path)


def test_a_session_of_the_first_format_is_read(engine, tmp_path):
    import json

    from safetensors.torch import save_file

    session = engine.session("hall", seed=4)
    walk(session, range(3))
    log = session.log
    rows = Controls.concat(log.controls)
    about = {
        "format": "worldline-session-1", "weights": engine.weights, "seed": 4, "prompts": [[0, "a hall"]],
        "keys": rows.keys, "chunks": 3,
    }  # fmt: skip
    tensors = {
        "image": torch.from_numpy(log.image.copy()), "move": torch.from_numpy(rows.move), "look": torch.from_numpy(rows.look),
        "latents": torch.stack(log.latents),
    }  # fmt: skip
    save_file(tensors, tmp_path / "old", metadata={"session": json.dumps(about)})
    old = Session.load(engine, tmp_path / "old")
    np.testing.assert_array_equal(walk(old, (3, 4)), walk(session, (3, 4)))


def test_a_world_of_other_chunks_refuses_a_file(engine, tmp_path):
    session = engine.session("hall")
    session.step(controls(0))
    session.save(tmp_path / "walk")
    other = Engine.load(write_tiny_world(tmp_path, chunk=3, window=6), dtype="float32", threads=1, warm=False)
    with pytest.raises(ShapeError, match="control rows"):
        Session.load(other, tmp_path / "walk")
