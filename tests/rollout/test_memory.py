"""Recalled frames: a stream with memory equals attention over everything ever seen under what was recalled, by definition."""

from __future__ import annotations

import pytest
import torch
from tests.rollout.test_positions import rotation
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.functional.prope import projection_matrices
from worldline.nn.kv_cache import FrameCache, KVCache
from worldline.rollout.history import CameraMemory
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import WorldlineError

DH = 16


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
