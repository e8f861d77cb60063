"""Averages are fp32 whatever the weights are, and what would stand still is refused."""

from __future__ import annotations

import pytest
import torch
from tests.train.jobs import EMPTY, VISIBLE, wan
from torch import nn

from worldline.methods.consistency import ConsistencyConfig
from worldline.schema import WorldlineError
from worldline.train.ema import EMA


def test_the_average_of_bf16_weights_follows_them():
    module = nn.Linear(4, 4, dtype=torch.bfloat16)
    ema = EMA(module, 0.999)
    ema.updates = 10**6  # no longer young
    before = {k: v.clone() for k, v in ema.state().items()}
    assert all(v.dtype == torch.float32 for v in before.values())
    with torch.no_grad():
        for p in module.parameters():
            p.add_(p, alpha=0.02)
    for _ in range(100):
        ema.update(module)
    for name, value in ema.state().items():
        torch.testing.assert_close(
            value / before[name], torch.full_like(value, 1 + 0.02 * (1 - 0.999**100)), atol=2e-3, rtol=0
        )
        assert (value != before[name]).all()


def test_a_target_that_cannot_follow_is_refused():
    nets = [wan(seed=seed).bfloat16() for seed in range(2)]
    with pytest.raises(WorldlineError, match=r"consistency target: an average in bfloat16 with decay 0\.99"):
        ConsistencyConfig().build(*nets, VISIBLE, EMPTY)
    ConsistencyConfig(target_decay=0.5).build(*nets, VISIBLE, EMPTY)
