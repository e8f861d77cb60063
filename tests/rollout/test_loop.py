"""The property the design rests on: chunks streamed through a cache equal one masked pass over the clip."""

from __future__ import annotations

import pytest
import torch

from worldline.functional.flow import few_step_sigmas
from worldline.functional.masks import Visibility
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import WorldlineError

CASES = [
    pytest.param(chunk, window, sink, prefix, id=f"chunk{chunk}-window{window}-sink{sink}-prefix{prefix}")
    for chunk, window, sink, prefix in [
        (1, None, 0, 0),
        (1, 3, 0, 1),
        (1, 3, 2, 1),
        (3, None, 0, 0),
        (3, 5, 1, 0),
        (3, 4, 0, 1),
        (4, 8, 0, 0),
        (4, 6, 2, 1),
    ]
]


def latents(frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))


def total(chunk: int, window: int | None, prefix: int) -> int:
    """Enough frames for more than three wraps of the ring."""
    need = 3 * (window or chunk) + 2 * chunk
    return prefix + -(-need // chunk) * chunk


@pytest.mark.parametrize("camera", ["none", "branch", "fused", "plucker", "cross"])
@pytest.mark.parametrize("cache", ["blocks", "ring"])
@pytest.mark.parametrize(("chunk", "window", "sink", "prefix"), CASES)
@torch.no_grad()
def test_streamed_chunks_equal_one_masked_pass(
    tiny_wan, tiny_text, cameras, camera, cache, chunk, window, sink, prefix
):
    model, text = tiny_wan(camera), tiny_text(2)
    visibility = Visibility(chunk=chunk, window=window, sink=sink, prefix=prefix)
    T = total(chunk, window, prefix)
    clean, noisy, poses = latents(T), latents(T, seed=2), cameras(2, T)
    sigma = torch.rand(2, T, generator=torch.Generator().manual_seed(3))
    for start in range(prefix, T, chunk):
        sigma[:, start : start + chunk] = sigma[:, start : start + 1]
    context = model.text_context(text)
    whole = teacher_forced_velocity(model, clean, noisy, sigma, context, cameras=poses, visibility=visibility)

    loop = ChunkLoop(model, RolloutPlan(visibility, (1.0,)), text, cache=cache, capacity=T)
    if prefix:
        loop.commit(clean[:, :prefix], poses[:prefix])
    for start in range(prefix, T, chunk):
        frames = slice(start, start + chunk)
        streamed = model(noisy[:, frames], sigma[:, frames], context, cameras=poses[frames], cache=loop._caches[0])
        torch.testing.assert_close(streamed, whole[:, frames], atol=1e-5, rtol=1e-5)
        loop.commit(clean[:, frames], poses[frames])


@torch.no_grad()
def test_a_chunk_sees_its_past_and_not_beyond_its_window(tiny_wan, tiny_text):
    model, text = tiny_wan(), tiny_text(2)
    loop = ChunkLoop(model, RolloutPlan(Visibility(chunk=1, window=3), (1.0,)), text, cache="ring")
    noise = latents(1, seed=9)

    def after(past: torch.Tensor) -> torch.Tensor:
        fresh = ChunkLoop(model, loop.plan, text, cache="ring")
        for t in range(past.shape[1]):
            fresh.commit(past[:, t : t + 1], None)
        return fresh.denoise(noise, None)

    # One layer of attention reaches two frames back; two layers reach four. Frame 0 of six lies beyond both.
    past = latents(6)
    outside, inside = past.clone(), past.clone()
    outside[:, 0] += 1
    inside[:, 5] += 1
    torch.testing.assert_close(after(outside), after(past), atol=0, rtol=0)
    assert (after(inside) - after(past)).abs().max() > 1e-3


@torch.no_grad()
def test_reanchoring_the_world_changes_nothing(tiny_wan, tiny_text, cameras):
    for camera in ("branch", "fused"):
        model, text, poses = tiny_wan(camera), tiny_text(2), cameras(2, 4)
        loop = ChunkLoop(model, RolloutPlan(Visibility(chunk=1, window=4), (1.0,)), text, cache="ring")
        clean = latents(3)
        for t in range(3):
            loop.commit(clean[:, t : t + 1], poses[t : t + 1])
        before = loop.denoise(latents(1, seed=5), poses[3:4])
        world = poses.w2c[:, 2]  # the pose of frame 2 becomes the identity
        loop.reanchor(world)
        moved = type(poses)(poses.w2c @ torch.linalg.inv(world)[:, None], poses.K, poses.motion)
        torch.testing.assert_close(loop.denoise(latents(1, seed=5), moved[3:4]), before, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_denoise_never_writes_the_past(tiny_wan, tiny_text):
    for cache in ("blocks", "ring"):
        loop = ChunkLoop(tiny_wan(), RolloutPlan.few_step(Visibility(chunk=1, window=3)), tiny_text(2), cache=cache)
        loop.commit(latents(1), None)
        g = lambda: torch.Generator().manual_seed(0)  # noqa: E731
        first = loop.denoise(latents(1, 3), None, generator=g())
        loop.denoise(latents(1, 4), None, generator=g())
        torch.testing.assert_close(loop.denoise(latents(1, 3), None, generator=g()), first, atol=0, rtol=0)


@torch.no_grad()
def test_a_fork_goes_its_own_way(tiny_wan, tiny_text):
    for cache in ("blocks", "ring"):
        loop = ChunkLoop(tiny_wan(), RolloutPlan(Visibility(chunk=1, window=4), (1.0,)), tiny_text(2), cache=cache)
        loop.commit(latents(1), None)
        other = loop.fork()
        other.commit(latents(1, 7), None)
        assert (loop.frames, other.frames) == (1, 2)
        control = ChunkLoop(loop.model, loop.plan, tiny_text(2), cache=cache)
        control.commit(latents(1), None)
        torch.testing.assert_close(
            loop.denoise(latents(1, 3), None), control.denoise(latents(1, 3), None), atol=0, rtol=0
        )


def test_gradient_reaches_only_the_exit_step_and_never_the_past(tiny_wan, tiny_text):
    model = tiny_wan()
    calls: list[bool] = []
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    loop = ChunkLoop(model, RolloutPlan.few_step(Visibility(chunk=1, prefix=1)), tiny_text(2))
    noise = latents(3).requires_grad_()
    chunks = list(generate(loop, noise, None, prefix=latents(1), exit_step=1, grad=True))
    assert calls == [False, *[False, True, False], *[False, True]]  # prefix; two steps and a commit; two steps
    chunks[1].sum().backward()
    assert noise.grad is None or noise.grad[:, 1].abs().sum() == 0


@torch.no_grad()
def test_guidance_pushes_away_from_the_negative_prompt(tiny_wan, tiny_text):
    model, cond, uncond = tiny_wan(), tiny_text(2), tiny_text(2, seed=5)
    x, levels = latents(2), (1.0,)
    visibility = Visibility(chunk=2)
    plain = [ChunkLoop(model, RolloutPlan(visibility, levels), t).denoise(x, None) for t in (cond, uncond)]
    guided = ChunkLoop(model, RolloutPlan(visibility, levels, guidance=3.0), cond, negative=uncond).denoise(x, None)
    torch.testing.assert_close(guided, plain[1] + 3 * (plain[0] - plain[1]), atol=1e-4, rtol=1e-4)


def test_wrong_plans_are_named():
    with pytest.raises(WorldlineError, match="descending"):
        RolloutPlan(Visibility(chunk=1), (0.5, 0.7))
    with pytest.raises(WorldlineError, match="expected one of"):
        RolloutPlan.few_step(Visibility(chunk=1), steps=3)
    assert RolloutPlan.few_step(Visibility(chunk=1)).sigmas == pytest.approx([float(s) for s in few_step_sigmas()])


@pytest.mark.parametrize("camera", ["none", "branch", "fused", "cross"])
@pytest.mark.parametrize(("chunk", "window", "sink", "m"), [(1, 4, 0, 1), (3, 5, 1, 2), (3, 3, 0, 1), (2, None, 0, 1)])
@torch.no_grad()
def test_opening_is_committing_and_denoising(tiny_wan, tiny_text, cameras, camera, chunk, window, sink, m):
    model, poses = tiny_wan(camera, motion=True), cameras(2, m + 2 * chunk)
    visibility = Visibility(chunk=chunk, window=window, sink=sink, prefix=m)
    plan = RolloutPlan.multi_step(visibility, 3, 1.5, solver="euler")
    given, noise, calls = latents(m), latents(2 * chunk, seed=2), []
    model.register_forward_hook(lambda *_: calls.append(1))

    def loop() -> ChunkLoop:
        return ChunkLoop(model, plan, tiny_text(2), negative=tiny_text(2), cache="ring", capacity=m + 2 * chunk)

    def then(loop: ChunkLoop, first: torch.Tensor) -> torch.Tensor:
        loop.commit(first, poses[m : m + chunk])
        return loop.denoise(noise[:, chunk:], poses[m + chunk :])

    apart, joint = loop(), loop()
    apart.commit(given, poses[:m])
    wanted = apart.denoise(noise[:, :chunk], poses[m : m + chunk])
    wanted_next = then(apart, wanted)
    calls.clear()
    found = joint.open(given, noise[:, :chunk], poses[: m + chunk])
    fits = window is not None and m + chunk <= window
    assert len(calls) == 2 * 3 + (0 if fits else 2)
    assert joint.frames == m
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(then(joint, found), wanted_next, atol=1e-5, rtol=1e-5)
