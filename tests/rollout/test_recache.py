"""A past written anew under another prompt, and a walk continued in many ways at once."""

from __future__ import annotations

import pytest
import torch

from worldline.functional.masks import Visibility
from worldline.rollout.loop import ChunkLoop
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError


def latents(frames: int, seed: int = 1, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("chunk", "sink", "guidance"), [(1, 0, 1.0), (1, 2, 1.0), (2, 3, 1.0), (1, 0, 2.0)])
@torch.no_grad()
def test_a_recached_past_is_one_written_under_the_new_prompt(tiny_wan, tiny_text, cameras, chunk, sink, guidance):
    """The reference writes sinks and window alone, at their own positions, in a loop that never saw anything else."""
    model, poses, clean = tiny_wan("fused"), cameras(1, 20), latents(20)
    old, new = tiny_text(), tiny_text(seed=7)
    plan = RolloutPlan(Visibility(chunk=chunk, window=4, sink=sink), (1.0,), guidance=guidance)
    loop, reference = (ChunkLoop(model, plan, t, negative=tiny_text(seed=3), cache="ring") for t in (old, new))
    for t in range(0, 14, chunk):
        loop.commit(clean[:, t : t + chunk], poses[t : t + chunk])
    before = loop.denoise(latents(chunk, 9), poses[14 : 14 + chunk])
    loop.recache(new)

    in_sight = [t for t in range(0, 14, chunk) if t < sink or t + chunk > 14 + chunk - 4]
    for t in in_sight:
        if t > reference.frames:
            for cache in reference._caches:
                cache.restart(t)
        reference.commit(clean[:, t : t + chunk], poses[t : t + chunk])
    got, wanted = (x.denoise(latents(chunk, 9), poses[14 : 14 + chunk]) for x in (loop, reference))
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)
    assert (got - before).abs().max() > 1e-3
    assert loop.frames == 14


@torch.no_grad()
def test_a_ring_after_a_restart_equals_a_shorter_walk(tiny_wan, tiny_text):
    """Rotary attention knows differences alone: frames 10.. after a restart are frames 0.. of another walk, past three
    wraps."""
    model, clean = tiny_wan(), latents(20)
    plan = RolloutPlan(Visibility(chunk=1, window=4), (1.0,))
    late, early = (ChunkLoop(model, plan, tiny_text(), cache="ring") for _ in range(2))
    late._caches[0].restart(10)
    for t in range(14):
        torch.testing.assert_close(
            late.denoise(latents(1, 5), None), early.denoise(latents(1, 5), None), atol=2e-5, rtol=1e-4
        )
        for loop in (late, early):
            loop.commit(clean[:, t : t + 1], None)
    with pytest.raises(WorldlineError, match="restart"):
        late._caches[0].restart(3)


@torch.no_grad()
def test_copies_of_a_walk_go_on_as_it_would(tiny_wan, tiny_text, cameras):
    model, poses, clean = tiny_wan("fused"), cameras(1, 9), latents(9)
    loop = ChunkLoop(model, RolloutPlan(Visibility(chunk=1, window=4), (1.0,)), tiny_text(), cache="ring")
    for t in range(6):
        loop.commit(clean[:, t : t + 1], poses[t : t + 1])
    many, view = loop.fork(copies=3), poses[6:7]
    noise = latents(1, seed=4, batch=3)
    together = many.denoise(noise, view.tile(batch=3))
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], loop.denoise(noise[i : i + 1], view), atol=1e-5, rtol=1e-5)
    many.commit(together, view.tile(batch=3))
    alone = loop.fork()
    alone.commit(together[2:], view)
    nexts = many.denoise(noise, poses[7:8].tile(batch=3)), alone.denoise(noise[2:], poses[7:8])
    torch.testing.assert_close(nexts[0][2:], nexts[1], atol=1e-5, rtol=1e-5)
    assert (loop.frames, many.frames) == (6, 7)


def test_blocks_are_neither_recached_nor_copied(tiny_wan, tiny_text):
    loop = ChunkLoop(tiny_wan(), RolloutPlan(Visibility(chunk=1), (1.0,)), tiny_text())
    for call in (lambda: loop.recache(tiny_text()), lambda: loop.fork(copies=2)):
        with pytest.raises(WorldlineError, match="ring"):
            call()
