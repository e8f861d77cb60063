"""Packed layers compute what linear layers compute in bf16."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worldline.nn.packed import PackedConv2d, PackedLinear, pack_convolutions, packs


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


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_packed_convolutions_take_pictures_of_any_size(stride):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 20, 4, stride=stride, padding=1), nn.ReLU(), nn.Conv2d(20, 8, 3, padding=1))
    plain.bfloat16()
    if not packs(plain[0]):
        pytest.skip("this build of PyTorch packs nothing")
    packed = copy.deepcopy(plain)
    pack_convolutions(packed)
    assert [type(layer) for layer in packed] == [PackedConv2d, nn.ReLU, PackedConv2d]
    for size in ((8, 12), (16, 10), (8, 12), (6, 6), (8, 8), (10, 6), (8, 12)):
        x = torch.randn(2, 6, *size)
        exact = copy.deepcopy(plain).double()(x.bfloat16().double())
        torch.testing.assert_close(packed(x).double(), exact, atol=2e-2, rtol=2e-2)
