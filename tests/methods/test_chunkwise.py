"""The backward of a rollout chunk by chunk: the same gradients from the activations of one chunk."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.live_bytes import LiveBytes
from tests.methods.conftest import EMPTY
from torch import nn

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.dmd import DMDConfig
from worldline.models.frugal import recompute_blocks
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch


class Doubles(nn.Module):
    """A causal model in float64: one attention over the cached past, prompt and clock beside it."""

    def __init__(self, channels: int = 4, dim: int = 8) -> None:
        super().__init__()
        self.into, self.qkv, self.out = nn.Linear(channels, dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, channels)
        self.clock, self.text = nn.Linear(1, dim), nn.Linear(8, dim)
        self.double()

    def text_context(self, text):
        return self.text(text.tokens.double().mean(1))

    def forward(self, x, sigma, text, *, cameras=None, positions=None, mask=None, cache=None):
        B, T, _, H, W = x.shape
        h = self.into(x.double().permute(0, 1, 3, 4, 2).flatten(2, 3))  # [B, T, S, D]
        h = h + self.clock(sigma.double()[..., None, None]) + text[:, None, None]
        q, k, v = self.qkv(h.flatten(1, 2)).unsqueeze(1).chunk(3, dim=-1)
        if cache is not None:
            k, v = cache.attend((0, "main"), k, v, T)
        h = F.silu(h + ((q @ k.mT).softmax(-1) @ v).squeeze(1).view(h.shape))
        return self.out(h).view(B, T, H, W, -1).permute(0, 1, 4, 2, 3)


def gradients(nets, batch, plan, step=0, **options):
    """Loss and gradients of the generator's update."""
    nets[0].zero_grad(set_to_none=True)
    loss = DMDConfig(**options).build(*nets, plan, EMPTY).generator_loss(batch, Rng(0, step))["loss"]
    loss.backward()
    return [loss.detach(), *(p.grad for p in nets[0].parameters())]


@pytest.mark.parametrize("visibility", [Visibility(1, prefix=1), Visibility(2, window=3, sink=1, prefix=1)])
def test_gradients_are_those_of_one_backward(clips, visibility):
    torch.manual_seed(0)
    nets, plan = [Doubles() for _ in range(3)], RolloutPlan.few_step(visibility)
    batch = clips.select([0, 1])
    batch = LatentBatch(batch.latents.double(), batch.text, None)
    for step in range(4):
        plain = gradients(nets, batch, plan, step)
        chunkwise = gradients(nets, batch, plan, step, chunkwise_backward=True)
        assert all(g.abs().max() > 0 for g in plain)
        for a, b in zip(plain, chunkwise, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_the_real_class(tiny_wan, clips, recompute):
    nets, plan = [tiny_wan("fused") for _ in range(3)], RolloutPlan.few_step(Visibility(2, window=3, prefix=1))
    plain = gradients(nets, clips.select([0, 1]), plan)
    other = [copy.deepcopy(net) for net in nets]
    if recompute:
        recompute_blocks(other[0])
    chunkwise = gradients(other, clips.select([0, 1]), plan, chunkwise_backward=True)
    torch.testing.assert_close(plain, chunkwise, atol=1e-7, rtol=1e-5)


def test_one_chunk_of_activations_is_alive(tiny_wan, cameras, tiny_text):
    """Eight chunks with a short window: what a backward holds falls from all chunks' to one's."""
    model, plan = tiny_wan("fused", dim=64, ffn_dim=128), RolloutPlan.few_step(Visibility(1, window=2, prefix=1))
    batch = LatentBatch(torch.randn(1, 9, 4, 8, 12), tiny_text(1), cameras(1, 9))

    def peak(chunkwise: bool) -> int:
        method = DMDConfig(chunkwise_backward=chunkwise).build(model, model, model, plan, EMPTY)
        with LiveBytes() as memory:
            method.rollout(batch, Rng(0, 1), grad=True).square().mean().backward()
        model.zero_grad(set_to_none=True)
        return memory.peak - gradients

    gradients = 4 * sum(p.numel() for p in model.parameters())
    assert peak(True) < peak(False) / 2.5
