"""What is formed once a chunk (clock of the fixed noise levels, rotations, cameras) equals what every step would form."""

from __future__ import annotations

import pytest
import torch

from worldline.functional.masks import Visibility
from worldline.models.backbone import Backbone
from worldline.rollout.loop import LEVELS, ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan

LEVELS_ASKED = (1.0, 0.9375, 0.625, 0.0)


def chunk(seed: int = 0, frames: int = 2) -> torch.Tensor:
    return torch.randn(2, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steering", [{}, {"motion": True, "actions": 10}])
@pytest.mark.parametrize("camera", ["none", "branch", "fused", "plucker", "cross"])
@torch.no_grad()
def test_conditions_stand_for_sigma_cameras_and_positions(tiny_wan, tiny_text, cameras, camera, steering):
    model, x, poses = tiny_wan(camera, **steering), chunk(), cameras(2, 2)
    context, positions = model.text_context(tiny_text(2)), torch.arange(5, 7)
    found = model.conditions(LEVELS_ASKED, x, poses, 5)
    assert len(found) == len(LEVELS_ASKED)
    for level, ready in zip(LEVELS_ASKED, found, strict=True):
        sigma = torch.full((2, 2), level)
        wanted = model(x, sigma, context, cameras=poses, positions=positions)
        got = model(x, torch.full_like(sigma, torch.nan), context, conditions=ready)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("plan", ["few", "many", "guided"])
@torch.no_grad()
def test_a_loop_equals_one_that_forms_everything_in_every_step(tiny_wan, tiny_text, cameras, monkeypatch, plan):
    visibility = Visibility(chunk=2, window=4, prefix=1)
    plan = {
        "few": RolloutPlan.few_step(visibility),
        "many": RolloutPlan.multi_step(visibility, LEVELS + 3, guidance=1.0),
        "guided": RolloutPlan.multi_step(visibility, 3, guidance=2.0),
    }[plan]
    model, poses, noise = tiny_wan("fused", motion=True), cameras(2, 9), chunk(1, 9)
    asked: list[int] = []
    model.condition_embedder.time_embedder.register_forward_hook(lambda *_: asked.append(1))

    def play() -> tuple[torch.Tensor, int]:
        asked.clear()
        loop = ChunkLoop(model, plan, tiny_text(2), negative=tiny_text(2, seed=3), cache="ring")
        seeded = torch.Generator().manual_seed(0)
        x0 = torch.cat(list(generate(loop, noise, poses, prefix=chunk(2, 1), generator=seeded)), dim=1)
        return x0, len(asked)

    ready, few = play()
    monkeypatch.setattr(type(model), "conditions", Backbone.conditions)
    plain, often = play()
    torch.testing.assert_close(ready, plain, atol=1e-5, rtol=1e-5)
    chunks, passes, guides = 4, len(plan.sigmas) + 1, 2 if plan.guidance != 1.0 else 1
    # The pass that the start shares forms its own; then a table for every LEVELS levels of a chunk, and one for the first
    # commit, which comes with other camera objects than the first chunk's.
    assert few == guides + chunks * -(-passes // LEVELS) + 1
    assert often == (chunks * len(plan.sigmas) + chunks - 1) * guides


@torch.no_grad()
def test_other_cameras_at_the_commit_are_not_mistaken_for_the_chunks(tiny_wan, tiny_text, cameras):
    model, plan = tiny_wan("fused", motion=True), RolloutPlan(Visibility(chunk=2, window=4), (1.0,))
    first, second, x = cameras(2, 4)[:2], cameras(2, 4, seed=1)[:2], chunk()
    loops = [ChunkLoop(model, plan, tiny_text(2), cache="ring") for _ in range(2)]
    loops[0].denoise(x, first)
    for loop in loops:
        loop.commit(x, second)
    torch.testing.assert_close(loops[0].denoise(x, first), loops[1].denoise(x, first), atol=0, rtol=0)


@pytest.mark.parametrize("cache", ["blocks", "ring"])
def test_gradient_reaches_the_clock_of_an_exit_step(tiny_wan, tiny_text, cameras, cache):
    model = tiny_wan("fused", motion=True)
    loop = ChunkLoop(model, RolloutPlan.few_step(Visibility(chunk=2, window=4)), tiny_text(2), cache=cache)
    loop.denoise(chunk(), cameras(2, 2), exit_step=1, grad=True).sum().backward()
    embedder = model.condition_embedder
    for layer in (embedder.time_embedder.linear_1, embedder.motion_embedder.linear_2, embedder.time_proj):
        assert layer.weight.grad.abs().max() > 0
    assert all(block.scale_shift_table.grad.abs().max() > 0 for block in model.blocks)


@torch.no_grad()
def test_weights_that_change_between_chunks_are_seen(tiny_wan, tiny_text):
    model, plan, x = tiny_wan(), RolloutPlan(Visibility(chunk=2, window=4), (1.0,)), chunk()
    loop = ChunkLoop(model, plan, tiny_text(2), cache="ring")
    loop.denoise(x, None)
    model.condition_embedder.time_proj.weight += 0.5
    fresh = ChunkLoop(model, plan, tiny_text(2), cache="ring").denoise(x, None)
    torch.testing.assert_close(loop.denoise(x, None), fresh, atol=0, rtol=0)
