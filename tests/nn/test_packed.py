"""Packed layers compute what linear layers compute in bf16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worldline.nn.packed import PackedLinear, packs


@pytest.mark.parametrize("rows", [1, 24, 50])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@torch.no_grad()
def test_packed_equals_plain(rows, bias, activation):
    torch.manual_seed(0)
    linear = nn.Linear(40, 56, bias=bias)
    assert not packs(linear)
    linear.bfloat16()
    if not packs(linear):
        pytest.skip("this build of PyTorch packs nothing")
    x = torch.randn(2, rows, 40)
    weight = linear.weight.double()
    exact = F.linear(x.bfloat16().double(), weight, None if linear.bias is None else linear.bias.double())
    exact = F.gelu(exact, approximate="tanh") if activation == "gelu" else exact
    found = PackedLinear(linear, activation)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=1e-2, rtol=1e-2)
