"""A stream that is compiled while it plays: same frames, one graph, no surprise; and what a chunk asks of its device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.rollout.test_graphs import Tracer
from tests.stream.test_session import controls, walk
from tests.tiny_world import write_tiny_world
from torch.utils._python_dispatch import TorchDispatchMode

from worldline.rollout.compiled import CompileWarning
from worldline.rollout.graphs import Graphed
from worldline.stream.engine import Engine

WAITS = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.equal")


class Graphs(list):
    """A compiler that keeps the graphs it is given and runs them as they are; a break in one would raise."""

    def __call__(self, forward):
        def backend(graph, _):
            self.append(graph)
            return graph.forward

        torch._dynamo.reset()
        return torch.compile(forward, fullgraph=True, dynamic=False, backend=backend)


def test_a_compiled_stream_is_one_graph_and_the_same_walk(engine):
    plain, graphs = walk(engine.session("hall"), range(12)), Graphs()
    engine.compile(graphs, wait=True)
    assert engine.compiling is not None
    assert engine.compiling.state == "compiled", engine.compiling.note
    called: list[int] = []
    quick = engine.compiling._quick
    engine.compiling._quick = lambda *a, **k: (called.append(1), quick(*a, **k))[1]
    session = engine.session("hall")
    np.testing.assert_allclose(walk(session, range(12)), plain, atol=1)
    session.set_prompt("a cave")  # other keys of the same shape: no other graph
    session.step(controls(0))
    assert len(graphs) == 1
    # Two steps a chunk and a clean pass of every chunk but the last, from where the ring is full.
    assert len(called) == (13 - 2) * 3 - 1


def test_a_stream_starts_before_it_is_compiled_and_changes_over_while_it_plays(engine):
    import threading

    inside, leave = threading.Event(), threading.Event()

    def slow(forward):
        inside.set()
        leave.wait(20)
        return lambda *args, **kwargs: forward(*args, **kwargs)

    wanted = walk(engine.session("hall"), range(12))
    engine.compile(slow)
    inside.wait(20)
    session = engine.session("hall")
    frames = [session.step(controls(i)) for i in range(6)]
    assert engine.compiling.state == "compiling"
    assert engine.compiling._quick is None
    leave.set()
    engine.compiling._thread.join(20)
    assert engine.compiling.state == "compiled"
    frames += [session.step(controls(i)) for i in range(6, 12)]
    np.testing.assert_array_equal(np.concatenate(frames), wanted)


@pytest.mark.parametrize("how", ["raises", "wrong", "nan"])
def test_a_failing_compiler_leaves_the_stream_as_it_is(engine, how):
    def compiler(forward):
        if how == "raises":
            raise RuntimeError("no compiler here")
        return lambda *args, **kwargs: forward(*args, **kwargs) * (1.2 if how == "wrong" else float("nan"))

    wanted = walk(engine.session("hall"), range(8))
    with pytest.warns(CompileWarning, match="uncompiled"):
        engine.compile(compiler, wait=True)
    assert engine.compiling.state == "failed"
    np.testing.assert_array_equal(walk(engine.session("hall"), range(8)), wanted)


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_walk(tmp_path):
    engine = Engine.load(write_tiny_world(tmp_path), dtype="float32", threads=1, warm=False)
    plain = walk(engine.session("hall"), range(9))
    torch._dynamo.reset()
    engine.compile(wait=True)
    assert engine.compiling.state == "compiled", engine.compiling.note
    np.testing.assert_allclose(walk(engine.session("hall"), range(9)), plain, atol=1)


def test_recorded_passes_make_the_same_walk(engine):
    """What a CUDA engine does, with a recorder for the CPU."""
    plain = walk(engine.session("hall"), range(9))
    recorder = Tracer()
    engine.backbone = Graphed(engine.model, recorder)
    session = engine.session("hall")
    np.testing.assert_allclose(walk(session, range(9)), plain, atol=1)
    assert recorder.replayed > 20
    session.rewind(3)
    np.testing.assert_allclose(walk(session, range(6, 9)), plain[-12:], atol=1)


class Waits(TorchDispatchMode):
    """Operators for which a device must be waited for, by the part of the chunk they were called in."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.found = "", []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(WAITS):
            self.found.append((self.now, str(func)))
        return func(*args, **(kwargs or {}))


def test_a_chunk_waits_for_its_device_once(engine):
    """Between controls and frames nothing is read; frames and verdict are fetched at the end, in one place."""
    session = engine.session("hall")
    walk(session, range(6))
    now = session._now
    with engine.compute(), Waits() as watch:
        watch.now = "denoise"
        drawn = now.draw(controls(6), 0, 0)
        watch.now = "decode"
        shown = now.shown(drawn)
        watch.now = "commit"
        session._commit()
    assert not shown.fault
    assert watch.found == []
