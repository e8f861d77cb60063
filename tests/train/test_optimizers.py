"""Moments in bf16: right in the mean, half the memory, resumed to the bit."""

from __future__ import annotations

import copy

import pytest
import torch

from worldline.schema import WorldlineError
from worldline.train.optimizers import SmallAdamW, stochastic_bf16


def test_rounding_is_right_in_the_mean():
    rng = torch.Generator().manual_seed(0)
    for value in (1.001, -1.001, 3e-7, 0.0):
        x = torch.full((40000,), value)
        rounded = stochastic_bf16(x, rng).float()
        assert len(rounded.unique()) <= 2
        assert rounded.mean().item() == pytest.approx(value, rel=2e-4)


def test_a_second_moment_moves_where_rounding_to_nearest_would_stop_it():
    p = torch.nn.Parameter(torch.zeros(1000))
    optimizer = SmallAdamW([p], lr=0.0, betas=(0.9, 0.999))
    for _ in range(1500):
        p.grad = torch.full_like(p, 1.0)
        optimizer.step()
    expected = 1 - 0.999**1500
    assert optimizer.state[p]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=0.02)


def trained(optimizer_class, steps=120, resume_at=None):
    torch.manual_seed(0)
    net, x = torch.nn.Linear(8, 8), torch.randn(64, 8)
    optimizer = optimizer_class(net.parameters(), lr=0.02, weight_decay=0.01)
    for step in range(steps):
        if step == resume_at:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_class(net.parameters(), lr=0.02, weight_decay=0.01)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        loss = (net(x) - x.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
    return net.weight.detach(), loss.item(), optimizer


def test_it_follows_adamw_with_half_the_moments():
    exact, loss, _ = trained(torch.optim.AdamW)
    mine, other, optimizer = trained(SmallAdamW)
    assert other == pytest.approx(loss, rel=0.05)
    assert (mine - exact).abs().max() < 0.02
    moments = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    assert {t.dtype for t in moments} == {torch.bfloat16}


def test_a_resumed_run_is_the_same_run():
    assert torch.equal(trained(SmallAdamW)[0], trained(SmallAdamW, resume_at=50)[0])


def test_what_it_cannot_keep_is_refused():
    with pytest.raises(WorldlineError, match="bfloat16"):
        SmallAdamW([torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])
