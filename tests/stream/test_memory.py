"""Camera memory in a session: a walk that comes back sees what it saw, and stays a value."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.stream.test_session import controls, walk
from tests.tiny_world import write_tiny_world

from worldline.functional.masks import Visibility
from worldline.rollout.history import CameraMemory
from worldline.schema import Controls, WorldlineError
from worldline.stream.counts import count_chunk, graph_breaks
from worldline.stream.engine import Engine
from worldline.stream.imagine import imagine
from worldline.stream.plan import plan_of
from worldline.stream.session import Session
from worldline.stream.world import WorldConfig

MEMORY = CameraMemory(slots=2, margin=0.02, changes=1, far=1.0, horizon=6)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_tiny_world(tmp_path_factory.mktemp("memory"), window=3, memory=MEMORY)


@pytest.fixture
def engine(world) -> Engine:
    return Engine.load(world, dtype="float32", threads=1, warm=False)


def turning(degrees: float) -> Controls:
    look = np.zeros((4, 3))
    look[:, 0] = degrees / 4
    return Controls(np.zeros((4, 3)), look)


def held(session: Session) -> tuple[int, ...]:
    return session._now.loop.memory.held[0]


def test_who_comes_back_recalls_what_was_there(engine):
    session = engine.session("hall")
    for degrees in [20.0] * 6 + [-20.0] * 6:
        session.step(turning(degrees))
    session.commit()
    # Latents 0 to 3 looked where 12, 11, 10 and 9 look; the window shows 10 and later.
    assert held(session) == (0, 1)


def test_memory_changes_what_is_shown_and_only_beyond_the_window(engine, world):
    without = Engine.load(world, dtype="float32", threads=1, warm=False, memory=0)
    assert without.config.memory is None
    a, b = walk(engine.session("hall"), range(6)), walk(without.session("hall"), range(6))
    np.testing.assert_array_equal(a[:8], b[:8])  # latents 0 to 2 fill the window
    assert np.abs(a[12:].astype(int) - b[12:]).max() > 2


def test_forks_rewinds_and_files_go_on_to_the_bit(engine, tmp_path):
    session = engine.session("hall", seed=2)
    walk(session, range(9))
    path, brief = tmp_path / "walk", tmp_path / "brief"
    session.save(path, latents=True)
    session.save(brief)
    others = [session.fork(), Session.load(engine, path), Session.load(engine, brief)]
    ahead = session.fork()
    walk(ahead, [5, 6, 7])
    ahead.rewind(3)
    wanted = walk(session, range(20, 26))
    for other in (*others, ahead):
        np.testing.assert_array_equal(walk(other, range(20, 26)), wanted)
        assert held(other) == held(session)
    assert session._now.loop.memory.encoded > 2, "nothing was ever replaced"


def test_a_revised_chunk_leaves_no_trace_of_the_first(engine):
    """What the first draw let go of was encoded under an older prompt: encoded again it would be another."""
    revised, straight = engine.session("hall"), engine.session("hall")
    swapped = 0
    for i, degrees in enumerate([30.0, 30.0, 30.0, 30.0, -30.0, -30.0, -30.0, 30.0, 30.0, 30.0, -30.0]):
        for session in (revised, straight):
            session.set_prompt(f"a cave {i}")
        revised.step(turning(-degrees))
        first = revised._now.loop.memory.choice.held[0]
        np.testing.assert_array_equal(revised.revise(turning(degrees)), straight.step(turning(degrees)), str(i))
        kept = set(held(revised)) & set(revised._now.loop.memory.choice.held[0])
        swapped += bool(kept - set(first))
    assert swapped > 1, "no draw ever let go of what the next one kept"


def test_imagined_walks_recall_what_theirs_would(engine):
    session = engine.session("hall")
    walk(session, range(7))
    tracks = [Controls.concat([turning(d)] * 3) for d in (25.0, -25.0)]
    seen = imagine(session, tracks)
    for i, track in enumerate(tracks):
        alone = session.fork()
        for start in range(0, 12, 4):
            alone.step(track[start : start + 4])
        got = torch.cat(alone.log.latents[-3:])
        torch.testing.assert_close(seen.latents[i], got, atol=1e-4, rtol=1e-4)


def test_far_walks_are_moved_to_the_player_with_all_they_remember(engine, monkeypatch):
    ahead = Controls(np.tile((0, 0, 1), (4, 1)), np.zeros((4, 3)))
    moved, still = engine.session("hall"), engine.session("hall")
    anchors = []
    for i in range(10):
        monkeypatch.setattr("worldline.stream.moment.REANCHOR_AT", 2.0)
        got = moved.step(ahead)
        anchors.append(np.linalg.norm(moved._now.camera._anchor[:3, 3]))
        monkeypatch.setattr("worldline.stream.moment.REANCHOR_AT", 1e9)
        np.testing.assert_allclose(got.astype(int), still.step(ahead), atol=2, err_msg=str(i))
    assert len(set(anchors)) > 2
    assert held(moved) == held(still) != ()


def test_a_chunk_with_memory_asks_its_device_for_nothing_more(engine):
    session = engine.session("hall")
    walk(session, range(10))
    assert not count_chunk(session, controls(3)).reads  # the host asks for no value
    assert graph_breaks(engine) == 0


def test_the_plan_counts_what_is_recalled(engine):
    """Attention and cache grow by the slots, whatever was walked: 4 (n S) (slots S) D operations a layer and pass."""
    session = engine.session("hall")
    walk(session, range(12))
    ring = session._now.loop._caches[0]
    assert ring._visible(1) == ring.capacity == 3 + 2
    assert engine.plan().cache_bytes == ring.nbytes

    # In bf16 and with so many tokens attention is done by products, which are counted.
    visibility, wan = Visibility(chunk=3, window=21, prefix=1), engine.model.config
    large = dataclasses.replace(engine.config, visibility=visibility, height=128, width=192)
    none, four = (
        plan_of(wan, engine.codec.config, dataclasses.replace(large, memory=large.memory_of(m))) for m in (0, 4)
    )
    S, layers = none.tokens_per_latent, wan.num_layers
    assert four.commit_flops - none.commit_flops == pytest.approx(layers * 4 * (3 * S) * (4 * S) * wan.dim, rel=1e-6)
    assert four.cache_bytes * 21 == none.cache_bytes * 25


def test_world_files_say_what_is_recalled(world, tmp_path):
    config = WorldConfig.read(world)
    assert config.memory == MEMORY
    config.write(tmp_path)
    assert WorldConfig.read(tmp_path) == config
    assert config.memory_of(5) == dataclasses.replace(MEMORY, slots=5)
    with pytest.raises(WorldlineError, match="at least 1"):
        CameraMemory(slots=0)
    with pytest.raises(WorldlineError, match="near < far"):
        CameraMemory(near=2.0, far=1.0)
