"""A model laid out for inference computes what it computed before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worldline.functional.masks import Visibility
from worldline.models.registry import save_model
from worldline.nn.kv_cache import RingCache
from worldline.rollout.loop import ChunkLoop
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError

CAMERAS = ["none", "branch", "fused", "plucker", "cross"]


def latents(frames: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))


def play(model: nn.Module, text, poses) -> torch.Tensor:
    """Three chunks through a ring."""
    loop = ChunkLoop(model, RolloutPlan(Visibility(chunk=2, window=4), (1.0, 0.5), "euler"), text, cache="ring")
    found = []
    for i in range(0, 6, 2):
        found.append(loop.denoise(latents(seed=i), poses[i : i + 2]))
        loop.commit(found[-1], poses[i : i + 2])
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("camera", CAMERAS)
@torch.no_grad()
def test_frozen_equals_free(tiny_wan, tiny_text, cameras, camera):
    model, text, poses = tiny_wan(camera, motion=True), tiny_text(2), cameras(2, 6)
    wanted = play(model, text, poses)
    torch.testing.assert_close(play(model.freeze(), text, poses), wanted, atol=1e-5, rtol=1e-5)
    assert model.freeze().frozen


@pytest.mark.parametrize("camera", CAMERAS)
@torch.no_grad()
def test_frozen_in_bf16_is_as_close_to_fp32_as_autocast_is(tiny_wan, tiny_text, cameras, camera):
    model, text, poses = tiny_wan(camera, motion=True), tiny_text(2), cameras(2, 6)
    exact = play(model, text, poses)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = play(model, text, poses)
        got = play(model.freeze(torch.bfloat16), text, poses)
    error, usual = ((x - exact).square().mean().sqrt() / exact.square().mean().sqrt() for x in (got, rounded))
    assert error <= 0.02
    assert error <= 1.5 * usual
    time = model.condition_embedder
    assert time.time_proj.weight.dtype == time.time_embedder.linear_1.weight.dtype == torch.float32


@torch.no_grad()
def test_keys_and_values_are_cached_in_the_compute_type(tiny_wan, tiny_text, cameras):
    for camera in CAMERAS:
        model, cache = tiny_wan(camera).freeze(torch.bfloat16), RingCache(Visibility(chunk=2, window=4))
        with torch.autocast("cpu", torch.bfloat16):
            model(latents(), torch.ones(2, 2), model.text_context(tiny_text(2)), cameras=cameras(2, 2), cache=cache)
        assert {x.dtype for x in (*cache._k.values(), *cache._v.values())} == {torch.bfloat16}


def test_adapters_must_be_merged_before(tiny_wan):
    model = tiny_wan()
    model.blocks[1].attn1.to_q = nn.Sequential(model.blocks[1].attn1.to_q)
    with pytest.raises(WorldlineError, match="merge adapters"):
        model.freeze()
    assert not model.frozen


def test_a_frozen_model_is_not_saved(tiny_wan, tmp_path):
    with pytest.raises(WorldlineError, match="load it again"):
        save_model(tiny_wan().freeze(), tmp_path / "model")
    assert not (tmp_path / "model").exists()
