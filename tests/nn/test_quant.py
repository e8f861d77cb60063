"""8-bit linear layers against integer and dequantised references; the artefact; where they stand in a model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worldline.models.hunyuan15.config import HUNYUAN_VARIANTS
from worldline.models.hunyuan15.model import HunyuanModel
from worldline.models.registry import load_model, save_model
from worldline.nn.quant import (
    SKIP,
    QuantisationError,
    QuantLinear,
    int8_product,
    quantise,
    quantise_rows,
    scales_by_row,
    scheme_of,
    weight_bytes,
)

SCHEMES = ["int8", "fp8"]
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
LOSS = {"int8": (0.004, 0.012), "fp8": (0.02, 0.032)}  # of a gaussian row's norm: 0.8 and 2.6 % by theory


def linear(rows: int = 48, columns: int = 64, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(columns, rows, bias=bias)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rounded_row_is_as_near_as_its_format_allows(scheme):
    x = torch.randn(200, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 200)[:, None]
    q, scale = quantise_rows(x, scheme)
    error = (q.double() * scale - x).norm(dim=-1) / x.double().norm(dim=-1)
    low, high = LOSS[scheme]
    assert low < error.min()
    assert error.max() < high


def test_int8_rounds_to_the_nearest_code_and_uses_them_all():
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(1))
    q, scale = quantise_rows(x, "int8")
    assert (q.double() * scale - x).abs().le(scale.double() * 0.5001).all()
    assert q.abs().amax(dim=-1).eq(127).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zero_and_what_is_not_finite_stays_so(scheme):
    layer = QuantLinear.of(linear(), scheme)
    rows = torch.zeros(4, 64)
    rows[1, 5], rows[2, 6], rows[3] = float("nan"), float("inf"), 1.0
    out = layer(rows)
    assert torch.equal(out[0], layer.bias)
    assert not out[1].isfinite().any()
    assert not out[2].isfinite().any()
    assert out[3].isfinite().all()


@pytest.mark.parametrize("rows", [1, 16, 17, 50])
def test_the_int8_product_is_exact(rows):
    generator = torch.Generator().manual_seed(rows)
    q = torch.randint(-127, 128, (rows, 1024), generator=generator, dtype=torch.int8)
    w = torch.randint(-127, 128, (48, 1024), generator=generator, dtype=torch.int8)
    q[0], w[0] = 127, -127  # the largest sum there is
    assert torch.equal(int8_product(q, w).long(), q.long() @ w.long().t())


@pytest.mark.parametrize("bias", [True, False])
def test_int8_layer_equals_integer_arithmetic(bias):
    plain = linear(bias=bias)
    layer, x = QuantLinear.of(plain, "int8"), torch.randn(3, 5, 64)
    scale = x.double().abs().amax(-1, keepdim=True) / 127
    codes = torch.round(x.double() / scale).long()
    w_scale = plain.weight.double().abs().amax(-1) / 127
    w_codes = torch.round(plain.weight.double() / w_scale[:, None]).long()
    exact = (codes @ w_codes.t()).double() * scale * w_scale + (plain.bias.double() if bias else 0)
    torch.testing.assert_close(layer(x).double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["widened", "a scale a row", "one scale"])
@pytest.mark.parametrize("bias", [True, False])
def test_fp8_layer_equals_its_dequantised_factors(bias, kernel):
    plain = linear(bias=bias)
    layer, x = QuantLinear.of(plain, "fp8"), torch.randn(3, 5, 64)
    if kernel != "widened":
        layer._wide, layer.by_row = None, kernel == "a scale a row"
    if layer.by_row and not scales_by_row(torch.device("cpu")):
        pytest.skip("this build's fp8 product takes no scale for every row")
    q, scale = quantise_rows(x, "fp8")
    factors = q.double() * scale, layer.weight.double() * layer.weight_scale.double()
    exact = F.linear(*factors, None if plain.bias is None else plain.bias.double())
    torch.testing.assert_close(layer(x).double(), exact, atol=1e-5, rtol=1e-5)


def test_what_a_device_can_is_tried_on_a_product():
    assert scales_by_row(torch.device("cpu")) in (True, False)
    with pytest.raises(QuantisationError, match="choose int8"):
        scales_by_row(torch.device("meta"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_is_near_the_plain_one(scheme):
    plain, x = linear(256, 256), torch.randn(100, 256)
    wanted = plain(x)
    error = (QuantLinear.of(plain, scheme)(x) - wanted).norm() / wanted.norm()
    assert error < 1.5 * LOSS[scheme][1]


def test_one_huge_channel_harms_int8_and_not_fp8():
    x = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    x[:, 7] *= 100
    rest = x.clone()
    rest[:, 7] = 0
    part = {}
    for scheme in SCHEMES:
        q, scale = quantise_rows(x, scheme)
        error = (q.float() * scale - x)[:, torch.arange(256) != 7]
        part[scheme] = float(error.norm() / rest.norm())
    assert part["int8"] > 0.2
    assert part["fp8"] < 0.04


@pytest.mark.parametrize("scheme", SCHEMES)
def test_joined_layers_are_their_parts_side_by_side(scheme):
    parts, x = [QuantLinear.of(linear(seed=i), scheme) for i in range(3)], torch.randn(7, 64)
    torch.testing.assert_close(
        QuantLinear.joined(parts)(x), torch.cat([p(x) for p in parts], dim=-1), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_type_follows_autocast_and_casts_leave_the_formats(scheme):
    layer, x = QuantLinear.of(linear(), scheme), torch.randn(4, 64)
    kept, scale = layer.weight.clone(), layer.weight_scale.clone()
    layer.bfloat16().to(torch.float64)
    assert layer.weight.dtype == kept.dtype
    assert torch.equal(layer.weight.float(), kept.float())
    assert torch.equal(layer.weight_scale, scale)
    assert layer(x).dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_keeps_what_meets_pixels_clock_and_camera(scheme, tiny_wan):
    model = tiny_wan("branch", motion=True)
    done = quantise(model, scheme)
    assert scheme_of(model) == done.scheme == scheme
    assert {name.split(".")[0] for name in done.layers} == {"blocks"}
    assert not any("prope_o" in name for name in done.layers)
    assert {"blocks.0.attn1.to_q", "blocks.1.ffn.net.2", "blocks.0.attn2.to_k"} <= set(done.layers)
    assert {"proj_out", "blocks.0.attn1.prope_o", "condition_embedder.time_proj"} <= set(done.skipped)
    assert done.bytes_after == weight_bytes(model) < done.bytes_before
    kept = tiny_wan("branch", motion=True)
    assert not any(n.startswith("blocks.1.") for n in quantise(kept, scheme, (*SKIP, "blocks.1.*")).layers)


def test_of_hunyuanvideo_too_only_the_blocks_own_products_are_quantised():
    with torch.device("meta"):
        model = HunyuanModel(replace(HUNYUAN_VARIANTS["nano-hy"], camera="branch"))
    layers = quantise(model, "int8").layers
    last = {name.removeprefix("transformer_blocks.0.") for name in layers if name.startswith("transformer_blocks.0.")}
    assert {name.split(".")[0] for name in layers} == {"transformer_blocks"}
    assert last == {f"attn.{name}" for name in PROJECTIONS} | {
        f"{part}.net.{layer}" for part in ("ff", "ff_context") for layer in ("0.proj", "2")
    }


def test_what_cannot_be_quantised_says_so(tiny_wan):
    with pytest.raises(QuantisationError, match="int4"):
        quantise(tiny_wan(), "int4")
    quantise(twice := tiny_wan(), "int8")
    with pytest.raises(QuantisationError, match="already"):
        quantise(twice, "fp8")
    with pytest.raises(QuantisationError, match="before freeze"):
        quantise(tiny_wan().freeze(), "int8")
    with pytest.raises(QuantisationError, match=r"blocks\.9"):
        quantise(tiny_wan(), "int8", (*SKIP, "blocks.9.*"))
    with pytest.raises(QuantisationError, match="left to quantise"):
        quantise(tiny_wan(), "int8", (*SKIP, "blocks.*"))
    with pytest.raises(QuantisationError, match="left to quantise"):
        quantise(nn.Sequential(nn.Linear(24, 40)), "int8")  # widths that no 8-bit kernel takes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("frozen", [False, True])
@torch.no_grad()
def test_a_quantised_model_is_near_the_model(scheme, frozen, tiny_wan, tiny_text, cameras):
    from tests.models.test_wan_freeze import play

    text, poses = tiny_text(2), cameras(2, 6)
    wanted = play(tiny_wan("fused", motion=True), text, poses)
    model = tiny_wan("fused", motion=True)
    quantise(model, scheme)
    loose = play(model, text, poses)
    got = play(model.freeze(), text, poses) if frozen else loose
    error = float((got - wanted).norm() / wanted.norm())
    assert 1e-4 < error < {"int8": 0.03, "fp8": 0.1}[scheme]
    if frozen:  # queries, keys and values as one product are the same numbers
        torch.testing.assert_close(got, loose, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_an_artefact_comes_back_to_the_bit(scheme, tiny_wan, tiny_text, cameras, tmp_path):
    from tests.models.test_wan_freeze import play

    model, text, poses = tiny_wan("fused"), tiny_text(2), cameras(2, 6)
    whole = save_model(model, tmp_path / "plain", dtype=torch.bfloat16)
    model = load_model(whole)
    quantise(model, scheme)
    small = save_model(model, tmp_path / "small", dtype=torch.bfloat16)
    sizes = [(d / "model.safetensors").stat().st_size for d in (whole, small)]
    assert sizes[1] < sizes[0]
    again = load_model(small)
    assert scheme_of(again) == scheme
    assert torch.equal(play(again, text, poses), play(model, text, poses))
    config = json.loads((small / "config.json").read_text())
    config["quantised"]["layers"].append("blocks.7.attn1.to_q")
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantisationError, match=r"blocks\.7"):
        load_model(small)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_compiled_layer_is_the_layer_without_a_break(scheme):
    layer, x = QuantLinear.of(linear(), scheme), torch.randn(5, 64)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x), atol=1e-6, rtol=1e-6)
