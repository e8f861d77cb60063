"""Recorded passes are what the stream would have computed. On a CPU the recorder is a tracer, which like a CUDA graph
keeps operators and addresses and forgets the Python around them."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from worldline.functional.masks import Visibility
from worldline.rollout.graphs import Graphed
from worldline.rollout.loop import ChunkLoop
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError


class Operators(TorchDispatchMode):
    """The operators of a piece of work with their very arguments, to be run again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def again(self) -> dict[int, Tensor]:
        """What every tensor made then is now, by its identity then."""
        now: dict[int, Tensor] = {}
        for func, args, kwargs, out in self.calls:
            args, kwargs = tree_map_only(Tensor, lambda x: now.get(id(x), x), (args, kwargs))
            fresh = func(*args, **kwargs)
            now.update(zip(map(id, tree_leaves(out)), tree_leaves(fresh), strict=True))
        return now


class Tracer:
    """Records like CUDARecorder: one run to settle, then operators and the addresses they touch."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work):
        work()
        self.recorded += 1
        with Operators() as graph:
            out = work()

        def replay() -> None:
            self.replayed += 1
            out.copy_(graph.again()[id(out)])

        return replay, out


def chunk(seed: int, frames: int = 2) -> Tensor:
    return torch.randn(2, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))


def walk(loop: ChunkLoop, poses, chunks: int) -> list[Tensor]:
    found = []
    for i in range(chunks):
        view, seeded = poses[2 * i : 2 * i + 2], torch.Generator().manual_seed(i)
        found.append(loop.denoise(chunk(i), view, generator=seeded))
        loop.commit(found[-1], view)
    return found


PLAN = RolloutPlan(Visibility(chunk=2, window=4, sink=2), (1.0, 0.5))


@pytest.mark.parametrize("camera", ["none", "branch", "fused", "plucker", "cross"])
@torch.no_grad()
def test_replayed_passes_equal_the_streams(tiny_wan, tiny_text, cameras, camera):
    model, record = tiny_wan(camera, motion=True).freeze(), Tracer()
    poses, text = cameras(2, 14), tiny_text(2)
    wanted = walk(ChunkLoop(model, PLAN, text, cache="ring"), poses, 7)
    got = walk(ChunkLoop(Graphed(model, record), PLAN, text, cache="ring"), poses, 7)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert record.recorded == 3  # two, four and six frames in sight; the ring goes round on the last
    assert record.replayed == 7 * 3  # two noise levels and the clean pass


@torch.no_grad()
def test_prompts_reanchoring_and_forks_are_followed(tiny_wan, tiny_text, cameras):
    model, poses = tiny_wan("fused", motion=True).freeze(), cameras(2, 12)
    world = poses.w2c[:, 3]

    def play(make) -> list[Tensor]:
        loop = ChunkLoop(make, PLAN, tiny_text(2), cache="ring")
        found = walk(loop, poses, 4)
        loop.set_text(tiny_text(2, seed=4))
        found.append(loop.denoise(chunk(20), poses[8:10], generator=torch.Generator().manual_seed(0)))
        loop.reanchor(world)
        found.append(loop.denoise(chunk(21), poses[8:10], generator=torch.Generator().manual_seed(0)))
        other = loop.fork()
        other.commit(chunk(22), poses[8:10])
        found.append(other.denoise(chunk(23), poses[10:12], generator=torch.Generator().manual_seed(0)))
        found.append(loop.denoise(chunk(21), poses[8:10], generator=torch.Generator().manual_seed(0)))
        return found

    wanted = play(model)
    torch.testing.assert_close(play(Graphed(model, Tracer())), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wanted[-1], wanted[-3], atol=0, rtol=0)


@torch.no_grad()
def test_a_closed_session_leaves_no_recording(tiny_wan, tiny_text, cameras):
    graphed = Graphed(tiny_wan().freeze(), Tracer())
    loop = ChunkLoop(graphed, PLAN, tiny_text(2), cache="ring")
    walk(loop, cameras(2, 4), 2)
    assert len(graphed._recordings) == 1
    del loop
    gc.collect()
    assert len(graphed._recordings) == 0


def test_a_model_that_can_be_trained_is_not_recorded(tiny_wan):
    with pytest.raises(WorldlineError, match="freeze"):
        Graphed(tiny_wan(), Tracer())
