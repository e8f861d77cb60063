"""Any sequence of calls, wrong ones among them, keeps what a session promises: its log is its walk, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.stream.test_session import controls
from tests.tiny_world import HEIGHT, WIDTH, write_tiny_world

from worldline.rollout.history import CameraMemory
from worldline.schema import Controls, WorldlineError
from worldline.stream import moment as moment_module
from worldline.stream.engine import Engine
from worldline.stream.session import Session


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Engine:
    return Engine.load(write_tiny_world(tmp_path_factory.mktemp("plain")), dtype="float32", threads=1, warm=False)


@pytest.fixture(scope="module")
def rounding(tmp_path_factory) -> Engine:
    return Engine.load(write_tiny_world(tmp_path_factory.mktemp("half")), dtype="bfloat16", threads=1, warm=False)


@pytest.fixture(scope="module")
def remembering(tmp_path_factory) -> Engine:
    """Recalls from the third chunk on, changes its mind often, and moves what it recalls in time from the fifth."""
    memory = CameraMemory(slots=2, margin=0.01, changes=1, far=1.0, horizon=5)
    root = write_tiny_world(tmp_path_factory.mktemp("memory"), window=2, memory=memory)
    return Engine.load(root, dtype="float32", threads=1, warm=False)


small = st.integers(0, 3)
CALLS = st.one_of(
    st.tuples(st.just("step"), small),
    st.tuples(st.just("step"), small),
    st.tuples(st.just("revise"), small),
    st.tuples(st.just("stream"), small),
    st.tuples(st.just("commit"), small),
    st.tuples(st.just("rewind"), st.integers(-1, 4)),
    st.tuples(st.just("prompt"), st.sampled_from(["keep", "recache", "cut", "blend", "fade"])),
    st.tuples(st.just("append"), st.sampled_from(["latents", "frames", "nan", "short"])),
    st.tuples(st.just("fork"), small),
    st.tuples(st.just("reload"), st.booleans()),
    st.tuples(st.just("reset"), small),
    st.tuples(st.just("rows"), st.sampled_from(["few", "roll", "nan", "huge"])),
    st.tuples(st.just("fails"), st.sampled_from(["denoise", "commit", "decode", "noise", "poison"])),
)


class Play:
    """A session, and the frames it has shown, chunk by chunk."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.session, self.shown, self.count = engine.session("hall", seed=5), [], 0

    def do(self, what: str, how) -> None:
        getattr(self, what)(how)

    def step(self, seed) -> None:
        self.shown.append(self.session.step(controls(seed)))

    def revise(self, seed) -> None:
        self.shown[-1:] = [self.session.revise(controls(seed))]

    def stream(self, n) -> None:
        for _, frames in zip(range(2), self.session.stream(controls(i) for i in range(n + 1)), strict=False):
            self.shown.append(frames)

    def commit(self, _) -> None:
        self.session.commit()

    def rewind(self, n) -> None:
        self.session.rewind(n)
        self.shown = self.shown[: len(self.shown) - n]

    def prompt(self, mode) -> None:
        self.count += 1
        self.session.set_prompt(f"a cave {self.count}", mode, chunks=2)

    def append(self, what) -> None:
        latents = torch.randn(2, *self.engine.latent_shape, generator=torch.Generator().manual_seed(self.count))
        pictures = np.full((8, HEIGHT, WIDTH, 3), 90, np.uint8)
        past = {"frames": pictures, "nan": latents * float("nan")}.get(what, latents)
        got = self.session.append(past, Controls.still(4 if what == "short" else 8))
        self.shown += [got[:4], got[4:]]

    def fork(self, _) -> None:
        left = self.session
        self.session = left.fork()
        left.step(controls(9))
        left.rewind(1)

    def reload(self, latents) -> None:
        path = self.folder / "walk"
        self.session.save(path, latents=latents)
        self.session = Session.load(self.engine, path)

    def reset(self, seed) -> None:
        self.session.reset(seed=seed)
        self.shown = []

    def rows(self, what) -> None:
        """Each of these is refused, or is a step like any other."""
        look = np.zeros((4, 3))
        look[:] = {"roll": 1.0, "nan": np.nan, "huge": 0.0, "few": 0.0}[what]
        rows = Controls(np.full((4, 3), 1e30 if what == "huge" else 0.0), look)
        self.shown.append(self.session.step(rows[:2] if what == "few" else rows))

    def fails(self, where) -> None:
        """The machine fails inside a step."""
        engine, patch = self.engine, pytest.MonkeyPatch()
        if where == "poison":
            with torch.inference_mode():
                for k in self.session._now.loop._caches[0]._k.values():
                    k.fill_(float("nan"))
            return
        real = {
            "denoise": engine.model.forward,
            "commit": moment_module.ChunkLoop.commit,
            "decode": engine.codec.decode_stream,
        }
        calls = []

        def failing(*args, **kwargs):
            calls.append(1)
            found = real[where](*args, **kwargs)
            if len(calls) == 2 or where != "denoise":
                raise MemoryError("no more")
            return found

        def noisy(self, *args, **kwargs):
            drawn = real_draw(self, *args, **kwargs)
            drawn.latents[0, 0, 0, 0, 0] = float("inf")
            return drawn

        real_draw = moment_module.Moment.draw
        try:
            if where == "noise":
                patch.setattr(moment_module.Moment, "draw", noisy)
            else:
                target = {"denoise": engine.model, "commit": moment_module.ChunkLoop, "decode": engine.codec}[where]
                patch.setattr(target, {"denoise": "forward", "decode": "decode_stream"}.get(where, where), failing)
            self.shown.append(self.session.step(controls(2)))
        finally:
            patch.undo()

    def check(self) -> None:
        session = self.session
        assert session.frame_index == 1 + 4 * len(self.shown)
        log = session.log
        assert len(log.latents) == len(log.attempts) == len(log) == len(self.shown)
        assert all(torch.isfinite(z).all() for z in log.latents)
        again = list(session.frames())
        np.testing.assert_array_equal(np.array(again), np.array(self.shown).reshape(np.array(again).shape))
        if self.shown:
            np.testing.assert_array_equal(session.last_frame, self.shown[-1][-1])

    def check_replay(self) -> None:
        """The walk made again from seed, controls, prompts and what was given, and gone on with."""
        path = self.folder / "again"
        self.session.save(path, latents=False)
        again = Session.load(self.engine, path)
        for seed in (0, 1):
            np.testing.assert_array_equal(again.step(controls(seed)), self.session.step(controls(seed)))


def play(engine: Engine, folder: Path, calls) -> None:
    game = Play(engine, folder)
    for what, how in calls:
        try:
            game.do(what, how)
        except (WorldlineError, MemoryError):
            pass
        except IndexError:
            assert what == "revise"
        game.check()
    game.step(3)  # what was poisoned last is noticed by the next step alone, and mended by another draw
    game.check()
    game.check_replay()


settled = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(settled, max_examples=8)
@given(st.lists(CALLS, max_size=8))
def test_a_log_is_its_walk_after_any_calls(plain, tmp_path_factory, calls):
    play(plain, tmp_path_factory.mktemp("play"), calls)


@settings(settled, max_examples=8)
@given(st.lists(CALLS, min_size=4, max_size=10))
def test_a_log_is_its_walk_after_any_calls_with_memory(remembering, tmp_path_factory, calls):
    play(remembering, tmp_path_factory.mktemp("play"), calls)


@pytest.mark.slow
@settings(settled, max_examples=300)
@given(st.integers(0, 2), st.lists(CALLS, min_size=6, max_size=24))
def test_a_log_is_its_walk_after_many_calls(plain, rounding, remembering, tmp_path_factory, which, calls):
    play((plain, rounding, remembering)[which], tmp_path_factory.mktemp("play"), calls)


@pytest.mark.parametrize("where", ["denoise", "commit", "decode", "noise", "poison"])
def test_every_failure_is_told_and_mended(plain, tmp_path, where):
    """The failures above do happen, and the walk is the one without them."""
    game, control = Play(plain, tmp_path), plain.session("hall", seed=5)
    for i in range(3):
        game.step(i)
        control.step(controls(i))
    if where == "poison":
        game.fails(where)
    else:
        with pytest.raises((MemoryError, WorldlineError)):
            game.fails(where)
    game.check()
    if where != "poison":  # there a third draw with another seed is the mend
        np.testing.assert_array_equal(game.session.step(controls(3)), control.step(controls(3)))
    else:
        game.step(3)
        assert game.session.log.attempts[-1] == 2
        game.check()
        game.check_replay()
