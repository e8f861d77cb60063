"""Backends of masked attention agree with a dense float64 reference, forward and backward."""

from __future__ import annotations

import pytest
import torch

from worldline.functional.masks import Visibility
from worldline.nn.attention import Always, FrameMask, attention
from worldline.schema import ShapeError

TOKENS = 3
VISIBILITIES = [
    Visibility(chunk=1),
    Visibility(chunk=3, prefix=1),
    Visibility(chunk=2, window=4, sink=1),
    Visibility(bidirectional=True),
]


def reference(q, k, v, mask=None):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v


def qkv(frames, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 2, frames * TOKENS, 16, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["blocks", "dense", "flex"])
@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_backends_equal_the_dense_mask(backend, visibility):
    frames = visibility.teacher_forcing_mask(6 + visibility.prefix)
    mask = FrameMask(frames, TOKENS, backend)
    wanted_in, got_in = qkv(len(frames), torch.float64), qkv(len(frames))
    wanted = reference(*wanted_in, Visibility.expand(frames, TOKENS))
    if backend == "flex":  # on a CPU it has no backward pass, and warns that it is not compiled
        got_in = [x.detach() for x in got_in]
    got = mask.attend(*got_in)
    torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=1e-5)
    if backend != "flex":
        weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (wanted * weight).sum().backward()
        (got * weight.float()).sum().backward()
        for a, b in zip(got_in, wanted_in, strict=True):
            torch.testing.assert_close(a.grad.double(), b.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("backend", ["blocks", "dense", "flex"])
def test_every_sample_under_its_own_mask(backend, beside):
    """Rows of other samples may stand in groups that were there before: order must not mix samples up."""
    g = torch.Generator().manual_seed(3)
    frames = torch.rand(2, 7, 7, generator=g) < 0.4
    frames |= torch.eye(7, dtype=torch.bool)
    frames[1, 4], frames[1, 5], frames[:, 2] = frames[0, 3], frames[0, 3], frames[0, 2]
    frames[0, 4] = frames[1, 3]
    always, known = None, torch.zeros(2, 0, dtype=torch.bool)
    ahead = [torch.randn(2, 2, 5, 16, generator=g, dtype=torch.float64) for _ in range(2)]
    if beside:
        known = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        always = Always(*(x.float() for x in ahead), known)
    wanted_in, got_in = qkv(7, torch.float64), qkv(7)
    token = frames.repeat_interleave(TOKENS, 1).repeat_interleave(TOKENS, 2)
    whole = torch.cat([known[:, None].expand(-1, 21, -1), token], dim=-1)[:, None]
    q, k, v = wanted_in
    if beside:
        k, v = torch.cat([ahead[0], k], dim=2), torch.cat([ahead[1], v], dim=2)
    wanted = reference(q, k, v, whole)
    if backend == "flex":
        got_in = [x.detach() for x in got_in]
    got = FrameMask(frames, TOKENS, backend).attend(*got_in, always)
    torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=1e-5)
    if backend != "flex":
        wanted.square().sum().backward()
        got.square().sum().backward()
        for a, b in zip(got_in, wanted_in, strict=True):
            torch.testing.assert_close(a.grad.double(), b.grad, atol=1e-5, rtol=1e-5)


def test_stepwise_and_fused_attention_agree():
    q, k, v = qkv(5)
    stepwise = attention(q, k, v)
    with torch.no_grad():
        fused = attention(q, k, v)
    torch.testing.assert_close(stepwise, fused, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fused, reference(q, k, v).detach(), atol=1e-6, rtol=1e-5)


def test_a_mask_over_tokens_is_refused():
    with pytest.raises(ShapeError, match=r"expected bool \[F, F\]"):
        FrameMask(torch.ones(2, 3, dtype=torch.bool), TOKENS)
    with pytest.raises(ShapeError, match="float32"):
        FrameMask(torch.ones(2, 2), TOKENS)


@pytest.mark.parametrize("rows", [512, 16])
def test_bf16_attention_by_products_is_right_in_every_piece(rows, monkeypatch):
    monkeypatch.setattr("worldline.nn.attention.ROWS", rows)
    monkeypatch.setattr("worldline.nn.attention.FEW", 4)
    g = torch.Generator().manual_seed(0)
    # As the model hands them over: heads split out of the width, not contiguous.
    q, k, v = (torch.randn(2, n, 3, 16, generator=g).bfloat16().transpose(1, 2) for n in (39, 50, 50))
    wanted = reference(q.double(), k.double(), v.double())
    got = attention(q, k, v)
    assert got.dtype == torch.bfloat16
    assert (got.double() - wanted).norm() / wanted.norm() < 0.01
