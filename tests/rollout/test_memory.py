"""Recalled frames: a stream with memory equals attention over everything ever seen under what was recalled, by definition."""

from __future__ import annotations

import pytest
import torch
from tests.models import test_hunyuan15 as hunyuan
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.functional.rope import apply_rope, rope_of_grid
from worldline.nn.kv_cache import FrameCache, RingCache
from worldline.rollout.history import CameraMemory, recallable, recalled
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.rollout.positions import moved_key
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import Cameras, WorldlineError


def latents(frames: int, seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))


def memory(**changes) -> CameraMemory:
    return CameraMemory(**{**dict(slots=2, margin=0.05, changes=2, far=1.0, points=64), **changes})


CASES = [
    pytest.param(camera, cache, *layout, id=f"{camera}-{cache}-{'-'.join(map(str, layout))}")
    for camera in ("none", "branch", "fused")
    for cache in ("ring", "blocks")
    for layout in ((1, 3, 1, 1), (3, 4, 0, 1))
]


@pytest.mark.parametrize(("camera", "cache", "chunk", "window", "sink", "prefix"), CASES)
@torch.no_grad()
def test_streamed_chunks_equal_one_masked_pass_with_what_they_recall(
    tiny_wan, tiny_text, cameras, camera, cache, chunk, window, sink, prefix
):
    model, text = tiny_wan(camera), tiny_text(2)
    visibility = Visibility(chunk=chunk, window=window, sink=sink, prefix=prefix)
    T = prefix + -(-(3 * window) // chunk) * chunk
    clean, noisy, poses = latents(T), latents(T, seed=2), cameras(2, T)
    sigma = torch.rand(2, T, generator=torch.Generator().manual_seed(3))
    for start in range(prefix, T, chunk):
        sigma[:, start : start + chunk] = sigma[:, start : start + 1]
    context, policy = model.text_context(text), memory()
    given = {"cameras": poses, "visibility": visibility}
    whole = teacher_forced_velocity(model, clean, noisy, sigma, context, **given, history=policy)
    blind = teacher_forced_velocity(model, clean, noisy, sigma, context, **given)
    assert (whole - blind)[:, -chunk:].abs().max() > 1e-3, "recalling changes nothing"

    loop = ChunkLoop(model, RolloutPlan(visibility, (1.0,), history=policy), text, cache=cache)
    if prefix:
        loop.commit(clean[:, :prefix], poses[:prefix])
    for start in range(prefix, T, chunk):
        frames = slice(start, start + chunk)
        view = poses[frames]
        loop.denoise(noisy[:, frames], view)
        streamed = model(noisy[:, frames], sigma[:, frames], context, cameras=view, cache=loop._caches[0])
        torch.testing.assert_close(streamed, whole[:, frames], atol=1e-5, rtol=1e-5)
        loop.commit(clean[:, frames], view)
    held = loop.memory.held
    assert all(len(h) == 2 for h in held)
    assert held[0] != held[1], "every sample recalls its own frames"


@pytest.mark.parametrize("camera", ["none", "branch", "fused"])
@torch.no_grad()
def test_a_frame_recalled_from_afar_stands_at_the_horizon(tiny_wan, tiny_text, cameras, camera):
    """The reference encodes what is recalled at its place, for every chunk anew, in blocks; the stream encodes it once where it
    was and turns its keys. Past re-anchoring, too."""
    model, text, T = tiny_wan(camera), tiny_text(), 16
    poses, clean, noisy = cameras(1, T), latents(T, batch=1), latents(T, seed=2, batch=1)
    policy, visibility = memory(horizon=5, changes=1), Visibility(chunk=1, window=3, prefix=1)
    loop = ChunkLoop(model, RolloutPlan(visibility, (1.0,), history=policy), text, cache="ring")
    plain = ChunkLoop(model, RolloutPlan(visibility, (1.0,)), text)
    context, world = model.text_context(text), torch.eye(4)[None]
    for t in range(T):
        own, view = slice(t, t + 1), poses[t : t + 1]
        moved = Cameras(view.w2c @ torch.linalg.inv(world)[:, None], view.K, view.motion)
        got = loop.denoise(noisy[:, own], moved)
        held = loop.memory.choice.held[0]
        if held:
            entries = []
            for f in held:
                entry = FrameCache()
                at = torch.tensor([max(f, t + 1 - 5)])
                model(
                    clean[:, f : f + 1], torch.zeros(1, 1), context, cameras=poses[f : f + 1], positions=at, cache=entry
                )
                entries.append(entry.blocks)
            streams = entries[0]
            together = {s: tuple(torch.cat([e[s][i] for e in entries], dim=2) for i in (0, 1)) for s in streams}
            plain._caches[0].remember(together, len(held))
        torch.testing.assert_close(got, plain.denoise(noisy[:, own], view), atol=3e-5, rtol=1e-4)
        loop.commit(clean[:, own], moved)
        plain.commit(clean[:, own], view)
        if t in (6, 11):
            loop.reanchor(moved.w2c[:, 0])
            world = moved.w2c[:, 0] @ world
    assert loop.memory.encoded < T - 3, "entries are encoded once"


@torch.no_grad()
def test_only_what_changes_is_encoded(tiny_wan, tiny_text, cameras):
    """A pass over one latent for every frame that is new; none while the memory stays as it is."""
    model, text, poses, clean = tiny_wan("fused"), tiny_text(), cameras(1, 12), latents(12, batch=1)
    still = Cameras(poses.w2c[:, :1].expand(-1, 12, -1, -1), poses.K, torch.zeros_like(poses.motion))
    calls: list[int] = []
    model.register_forward_hook(lambda module, given, out: calls.append(given[0].shape[1]))
    plan = RolloutPlan(Visibility(chunk=2, window=4), (1.0,), history=memory(slots=3))
    loop, held = ChunkLoop(model, plan, text, cache="ring"), []
    for t in range(0, 12, 2):
        calls.clear()
        loop.denoise(clean[:, t : t + 2], still[t : t + 2])
        loop.denoise(clean[:, t : t + 2], still[t : t + 2])
        loop.commit(clean[:, t : t + 2], still[t : t + 2])
        held.append(loop.memory.held[0])
        new = len(set(held[-1]) - set(held[-2] if t else ()))
        assert calls == [1] * new + [2, 2, 2]
    assert held == [(), (), (0, 1), (0, 1, 2), (0, 1, 2), (0, 1, 2)]


@torch.no_grad()
def test_hunyuan_remembers_too():
    for camera in ("branch", "fused"):
        model, T = hunyuan.decoupled(camera, motion=True), 11
        poses, text = hunyuan.walk(T), hunyuan.prompt(hunyuan.STREAMED, [(6, 4), (3, 2)])
        clean, noisy, sigma = latents(T), latents(T, seed=2), torch.full((2, T), 0.7)
        visibility, policy = Visibility(chunk=2, window=4, prefix=1), memory(horizon=T)
        context = model.text_context(text)
        whole = teacher_forced_velocity(
            model, clean, noisy, sigma, context, cameras=poses, visibility=visibility, history=policy
        )
        loop = ChunkLoop(model, RolloutPlan(visibility, (0.7,), history=policy), text, cache="ring")
        loop.commit(clean[:, :1], poses[:1])
        for t in range(1, T, 2):
            own = slice(t, t + 2)
            got = loop.denoise(noisy[:, own], poses[own])
            wanted = noisy[:, own] - 0.7 * whole[:, own]
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
            loop.commit(clean[:, own], poses[own])
        assert loop.memory.held != ((), ())
        # Beyond the horizon keys are turned by this family's own frequencies.
        near = ChunkLoop(model, RolloutPlan(visibility, (0.7,), history=memory(horizon=4)), text, cache="ring")
        assert near.memory.policy.horizon == 4
        turned = moved_key(model.config, 3, None)
        k = torch.randn(1, 1, 2, model.config.head_dim, generator=torch.Generator().manual_seed(0))
        theta, sizes = model.config.rotary
        early, late = (
            rope_of_grid(
                torch.tensor([p]), 1, 1, model.config.head_dim, device=torch.device("cpu"), theta=theta, sizes=sizes
            )
            for p in (2, 5)
        )
        got = apply_rope(k[:, :, :1], *early).double() @ turned
        torch.testing.assert_close(got.float(), apply_rope(k[:, :, :1], *late), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_guidance_remembers_under_both_prompts(tiny_wan, tiny_text, cameras):
    model, poses, clean = tiny_wan("fused"), cameras(1, 9), latents(9, batch=1)
    texts, noise = (tiny_text(), tiny_text(seed=5)), latents(1, seed=7, batch=1)
    visibility, policy = Visibility(chunk=1, window=3), memory()

    def walked(guidance: float, text, negative) -> Tensor:
        plan = RolloutPlan(visibility, (1.0,), guidance=guidance, history=policy)
        loop = ChunkLoop(model, plan, text, negative=negative, cache="ring")
        for t in range(8):
            loop.commit(clean[:, t : t + 1], poses[t : t + 1])
        return loop.denoise(noise, poses[8:9])

    cond, uncond = (walked(1.0, text, None) for text in texts)
    torch.testing.assert_close(walked(3.0, *texts), uncond + 3 * (cond - uncond), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_recaching_makes_what_is_recalled_anew(tiny_wan, tiny_text, cameras):
    model, poses, clean = tiny_wan("fused"), cameras(1, 10), latents(10, batch=1)
    plan = RolloutPlan(Visibility(chunk=1, window=3), (1.0,), history=memory(changes=1))
    old, new = tiny_text(), tiny_text(seed=5)
    loops = [ChunkLoop(model, plan, text, cache="ring") for text in (old, new)]
    for t in range(9):
        for loop in loops:
            loop.commit(clean[:, t : t + 1], poses[t : t + 1])
    changed, alike = loops
    changed.recache(new)
    assert changed.memory.held == alike.memory.held
    noise = latents(1, seed=7, batch=1)
    changed.denoise(noise, poses[9:10])
    alike.denoise(noise, poses[9:10])
    for key, entry in changed.memory._entries.items():
        for stream, (k, _) in entry.blocks.items():
            torch.testing.assert_close(k, alike.memory._entries[key].blocks[stream][0], atol=1e-5, rtol=1e-5)


def test_a_held_frame_gives_way_only_to_one_that_is_worth_more_by_the_margin():
    policy = memory(slots=2, margin=0.1, changes=1)
    assert policy.replaced((), {0: 0.2, 1: 0.9, 2: 0.9}) == (1,), "of equals the older; one change a chunk"
    assert policy.replaced((1,), {0: 0.2, 1: 0.9, 2: 0.9}) == (1, 2)
    assert policy.replaced((1, 2), {0: 0.59, 1: 0.5, 2: 0.7}) == (1, 2), "not by the margin"
    assert policy.replaced((1, 2), {0: 0.61, 1: 0.5, 2: 0.7}) == (0, 2), "in the slot of the least"
    assert policy.replaced((1, 2), {0: 0.9, 1: 0.5, 2: 0.5, 3: 0.9}) == (1, 0), "of equals the newer goes"
    both = memory(slots=2, margin=0.1, changes=2)
    assert both.replaced((1, 2), {0: 0.9, 1: 0.5, 2: 0.5, 3: 0.9}) == (3, 0)
    assert both.replaced((1, 2), {0: 0.9, 1: 0.5, 2: 0.85, 3: 0.9}) == (0, 2), "a new one may not go again"
    # A worth that wanders by less than the margin never changes what is held.
    wander = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 0.09
    held = policy.replaced(
        policy.replaced((), dict(enumerate(wander[0].tolist()))), dict(enumerate(wander[0].tolist()))
    )
    for row in wander:
        assert policy.replaced(held, dict(enumerate(row.tolist()))) == held


def test_what_is_recalled_does_not_depend_on_the_world_frame(cameras):
    poses, visibility = cameras(2, 14, seed=4), Visibility(chunk=1, window=3, sink=1, prefix=1)
    world = torch.linalg.inv(cameras(1, 2, seed=9).w2c[:, 1:])
    moved = Cameras(poses.w2c @ world, poses.K, poses.motion)
    held = recalled(memory(), visibility, poses)
    assert recalled(memory(), visibility, moved) == held
    assert held[0] != held[1]
    for t, seen in enumerate(held[0]):
        assert all(1 <= f < max(1, t + 1 - 3) for f in seen), "no sink, nothing of the window, nothing to come"
    far = poses.w2c.clone()
    far[..., :3, 3] *= 3
    scaled = Cameras(far, poses.K, poses.motion)
    assert recalled(memory(near=0.3, far=3.0), visibility, scaled) == recalled(memory(), visibility, poses)


def test_an_archive_has_an_end_but_for_what_is_held():
    visibility = Visibility(chunk=2, window=4, sink=1)
    assert recallable(visibility, 5, (), 2, 4) == []
    assert recallable(visibility, 5, (), 6, 8) == [1, 2, 3]
    assert recallable(visibility, 5, (), 20, 22) == [13, 14, 15, 16, 17]
    assert recallable(visibility, 5, (3, 15, 2), 20, 22) == [2, 3, 13, 14, 15, 16, 17]
    assert recallable(Visibility(chunk=2), 5, (), 20, 22) == []


@torch.no_grad()
def test_a_long_walk_keeps_an_archive_and_no_more(tiny_wan, tiny_text, cameras):
    model, poses = tiny_wan("none"), cameras(1, 30)
    plan = RolloutPlan(Visibility(chunk=1, window=3), (1.0,), history=memory(archive=6, horizon=8))
    loop = ChunkLoop(model, plan, tiny_text(), cache="ring")
    for t in range(30):
        loop.commit(latents(1, seed=t, batch=1), poses[t : t + 1])
    kept = list(loop.memory._latents)
    assert set(kept) - set(loop.memory.held[0]) <= set(range(30 - 3 - 6, 30))
    assert len(kept) <= 6 + 3 + 2
    assert loop.memory._cameras.w2c.shape[1] == len(kept)
    assert len(loop.memory._entries) == 2
    ring = loop._caches[0]
    assert ring._visible(1) == 5 == ring.capacity
    assert all(k.shape[2] == 5 * 6 for k in ring._k.values())


class EveryOther:
    """Another policy: what was recalled stays, every other frame comes."""

    slots, archive, horizon = 2, 100, None

    def choose(self, held, frames, past, coming):
        assert past.w2c.shape[:2] == (1, len(frames))
        return tuple(f for f in frames if f % 2 == 0)[-self.slots :]


@torch.no_grad()
def test_any_policy_can_be_put_in(tiny_wan, tiny_text, cameras):
    model, poses = tiny_wan("fused"), cameras(1, 9)
    loop = ChunkLoop(
        model, RolloutPlan(Visibility(chunk=1, window=3), (1.0,), history=EveryOther()), tiny_text(), cache="ring"
    )
    for t in range(9):
        loop.commit(latents(1, seed=t, batch=1), poses[t : t + 1])
    assert loop.memory.held == ((2, 4),)


def test_training_learns_from_what_is_recalled(tiny_wan, tiny_text, cameras):
    """Gradients reach a frame that was recalled and lies beyond every window, through its second copy alone."""
    model, poses = tiny_wan("fused"), cameras(2, 10)
    clean = latents(10).requires_grad_()
    visibility = Visibility(chunk=1, window=2)
    held = recalled(memory(slots=1, changes=1), visibility, poses)

    def reached(history) -> Tensor:
        v = teacher_forced_velocity(
            model, clean, latents(10, seed=2), torch.full((2, 10), 0.5), model.text_context(tiny_text(2)),
            cameras=poses, visibility=visibility, history=history,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(v[:, 9].square().sum(), clean)
        return grad.abs().amax(dim=(2, 3, 4)) > 0

    blind, seeing = reached(None), reached(memory(slots=1, changes=1))
    for b in range(2):
        (frame,) = held[b][9]
        assert not blind[b, frame]
        assert seeing[b, frame]


def test_wrong_memories_are_named(tiny_wan, tiny_text, cameras):
    with pytest.raises(WorldlineError, match="window"):
        RolloutPlan(Visibility(chunk=1), (1.0,), history=memory())
    plan = RolloutPlan(Visibility(chunk=1, window=3), (1.0,), history=memory())
    with pytest.raises(WorldlineError, match="without cameras"):
        ChunkLoop(tiny_wan(), plan, tiny_text(2)).denoise(latents(1), None)
    given = {"visibility": plan.visibility, "history": memory(horizon=4)}
    text = tiny_wan().text_context(tiny_text(2))
    for poses, message in ((cameras(2, 6), "horizon 4"), (None, "cameras")):
        with pytest.raises(WorldlineError, match=message):
            teacher_forced_velocity(tiny_wan(), latents(6), latents(6), torch.ones(2, 6), text, cameras=poses, **given)
    with pytest.raises(WorldlineError, match="3 frames to remember in 2 slots"):
        RingCache(plan.visibility, memory=2).remember({}, 3)
    with pytest.raises(WorldlineError, match="no memory"):
        FrameCache().remember({}, 1)


def test_a_chunkwise_backward_remembers_what_its_forward_did(tiny_wan, tiny_text, cameras):
    """By the time of the backward the memory holds other frames."""
    found = []
    for chunkwise in (False, True):
        model, poses = tiny_wan("fused"), cameras(2, 8)
        plan = RolloutPlan(Visibility(chunk=1, window=2, prefix=1), (1.0, 0.5), history=memory(changes=1))
        loop = ChunkLoop(model, plan, tiny_text(2), chunkwise=chunkwise)
        chunks = generate(
            loop, latents(8), poses, prefix=latents(1, seed=3), exit_step=1, grad=True,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        torch.cat(list(chunks), dim=1).square().mean().backward()
        assert loop.memory.held != ((), ())
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
