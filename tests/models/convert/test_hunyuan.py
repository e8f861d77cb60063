"""HunyuanVideo-1.5's namings: bijective, round trips to the byte, full-size headers, refusals."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import randomise

from worldline.models.convert import convert, hunyuan, inspect
from worldline.models.convert.errors import InDoubtError, KeysError, UnknownFamilyError
from worldline.models.convert.published import maturity_of
from worldline.models.hunyuan15 import HUNYUAN_VARIANTS, HunyuanConfig, HunyuanModel
from worldline.models.registry import load_model, save_model

FULL = HUNYUAN_VARIANTS["hunyuan-1.5"]
SMALL = HunyuanConfig(
    dim=32, num_heads=2, num_layers=3, text_dim=16, text_lens=(1000, 256, 729), byt5_dim=8, byt5_hidden=24, image_dim=12,
    in_channels=4, out_channels=4, ffn_dim=128, refiner_layers=2, refiner_ffn_dim=128, rope_dims=(4, 6, 6),
)  # fmt: skip
BESIDE = json.dumps({"rope_dim_list": [4, 6, 6]})


def model(**changes):
    return randomise(HunyuanModel(replace(SMALL, **changes)))


def original_shapes(config):
    """Name -> shape of every tensor in the original naming."""
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, shape in hunyuan.expected_shapes(config).items():
        name = hunyuan.original_of(ours)
        assert name is not None
        rows = shapes.get(name, (0,))[0] + shape[0]
        shapes[name] = (rows, *shape[1:])
    return shapes


def original(state):
    """A state as Tencent's files hold it, made by hand and not by the code under test."""
    found: dict[str, torch.Tensor] = {}
    for ours, tensor in state.items():
        name = hunyuan.original_of(ours)
        found[name] = torch.cat([found[name], tensor]) if name in found else tensor
    for leaf in ("weight", "bias"):
        key = f"final_layer.adaLN_modulation.1.{leaf}"
        shift, scale = state[f"norm_out.linear.{leaf}"].chunk(2)[::-1]
        found[key] = torch.cat([shift, scale])
    return {k: v.contiguous() for k, v in found.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize(("camera", "tensors"), [("none", 1793), ("branch", 1901)])
def test_the_map_is_a_bijection_at_full_size(camera, tensors):
    config = replace(FULL, camera=camera)
    names = list(hunyuan.expected_shapes(config))
    assert len(original_shapes(config)) == tensors  # as published: 1793, and 108 of the camera
    back = [ours for name in original_shapes(config) for ours in hunyuan.ours_of(name)]
    assert sorted(back) == sorted(names)
    assert hunyuan.ours_of("double_blocks.3.img_attn_q.weight") == ("transformer_blocks.3.attn.to_q.weight",)
    assert hunyuan.ours_of("double_blocks.x.img_attn_q.weight") == ()
    assert hunyuan.original_of("time_embed.motion_embedder.linear_1.weight") is None


@pytest.mark.parametrize(
    "changes", [{}, {"camera": "branch"}, {"camera": "branch", "actions": 256}, {"meanflow": True}]
)
def test_the_original_arrives_to_the_byte_and_goes_back(tmp_path, changes):
    net = model(**changes)
    file = tmp_path / "ckpt" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir()
    save_file(original(net.state_dict()), file)
    (file.parent / "config.json").write_text(BESIDE)
    report = convert(file, tmp_path / "ours")
    assert not report.faults
    assert "Tencent Hunyuan" in report.licence
    assert json.loads((tmp_path / "ours" / "card.json").read_text())["licence"] == report.licence
    loaded = load_model(tmp_path / "ours")
    assert loaded.config == net.config
    assert same(loaded.state_dict(), net.state_dict())
    convert(tmp_path / "ours", tmp_path / "back", to="hunyuan")
    assert same(load_file(tmp_path / "back" / file.name), load_file(file))


def test_swap_and_split_are_those_of_the_published_layout(tmp_path):
    """Against diffusers' own reading: its last layer takes (scale, shift), its refiner three projections."""
    net = model()
    state = original(net.state_dict())
    fused = state["txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight"]
    refiner = net.context_embedder.token_refiner["refiner_blocks"][1].attn
    assert torch.equal(fused, torch.cat([refiner.to_q.weight, refiner.to_k.weight, refiner.to_v.weight]))
    scale, shift = net.norm_out.linear.weight.chunk(2)
    assert torch.equal(state["final_layer.adaLN_modulation.1.weight"], torch.cat([shift, scale]))


def test_diffusers_loads_the_export_and_gives_it_back(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    net = model(byt5_hidden=2048)  # diffusers knows no other
    save_model(net, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="diffusers")
    theirs, told = diffusers.HunyuanVideo15Transformer3DModel.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert same(dict(theirs.state_dict()), net.state_dict())
    theirs.save_pretrained(tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "back")
    assert load_model(tmp_path / "back").config == net.config
    assert same(load_model(tmp_path / "back").state_dict(), net.state_dict())


def hollow(path, shapes):
    """A bf16 safetensors file of those tensors whose data is a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


@pytest.mark.parametrize(
    ("changes", "layout", "tensors", "parameters"),
    [
        ({}, "original HunyuanVideo-1.5", 1801, 8_326_608_160),
        ({"camera": "branch"}, "minWM, HunyuanVideo-1.5", 1909, 8_553_211_168),
        ({"camera": "branch", "actions": 256}, "HY-WorldPlay or minWM, HunyuanVideo-1.5", 1913, 8_557_933_856),
    ],
)
def test_full_size_files_are_explained_to_the_last_key(tmp_path, changes, layout, tensors, parameters):
    config = replace(FULL, **changes)
    report = inspect(hollow(tmp_path / "model.safetensors", original_shapes(config)))
    assert not report.faults
    assert (report.layout, report.variant, report.config) == (layout, "hunyuan-1.5", config)
    assert (report.tensors, report.parameters) == (tensors, parameters)


def test_a_steering_part_that_has_no_place_is_not_dropped_unasked(tmp_path):
    save_model(model(camera="branch"), tmp_path / "ours")
    with pytest.raises(KeysError, match="--leave-out camera"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="diffusers")
    convert(tmp_path / "ours", tmp_path / "theirs", to="diffusers", leave_out=["camera"])
    assert not any("prope_o" in k for k in load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(InDoubtError, match=r"HunyuanVideo-1\.5 model as 'wan'"):
        convert(tmp_path / "ours", tmp_path / "wan", to="wan")


def test_strangers_are_told_apart(tmp_path):
    state = original(model().state_dict())
    (tmp_path / "config.json").write_text(BESIDE)
    missing = {k: v for k, v in state.items() if k != "double_blocks.1.txt_attn_proj.bias"}
    save_file({**missing, "guidance_in.mlp.0.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    report = inspect(tmp_path / "a.safetensors")
    assert report.unknown == ("guidance_in.mlp.0.weight",)
    assert report.missing == ("transformer_blocks.1.attn.to_add_out.bias",)
    with pytest.raises(KeysError, match="1 unexplained tensors"):
        convert(tmp_path / "a.safetensors", tmp_path / "out")
    first = {k: v for k, v in state.items() if not k.startswith(("byt5_in", "cond_type"))}
    save_file({**first, "single_blocks.0.linear1.weight": torch.zeros(2, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(UnknownFamilyError, match="nearest: HunyuanVideo "):
        inspect(tmp_path / "b.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InDoubtError, match="rope_axes_dim"):
        inspect(tmp_path / "a.safetensors")


PUBLISHED = [  # (project, folder, its parts, layout, maturity): minWM's HY15 folders and HY-WorldPlay's
    *(("Action2V", name, {"camera": "branch"}, "minWM", kind) for name, kind in (
        ("bidirectional", "bidirectional"), ("ar_diffusion_tf", "causal"), ("causal_ode", "few-step"),
        ("causal_cd", "few-step"), ("dmd", "few-step"), ("dmd_ourbi", "few-step"))),
    *(("TI2V", name, {}, "original", kind) for name, kind in (
        ("bidirectional", "bidirectional"), ("ar_diffusion_tf", "causal"), ("causal_ode", "few-step"),
        ("causal_cd", "few-step"), ("dmd", "few-step"))),
    *(("HY-WorldPlay", name, {"camera": "branch", "actions": 256}, "HY-WorldPlay", kind) for name, kind in (
        ("bidirectional_model", "bidirectional"), ("ar_model", "causal"), ("ar_rl_model", "causal"),
        ("ar_distilled_action_model", "few-step"))),
]  # fmt: skip


@pytest.mark.parametrize(("project", "folder", "parts", "layout", "maturity"), PUBLISHED)
def test_every_published_folder_is_recognised_and_comes_back_to_the_byte(
    tmp_path, project, folder, parts, layout, maturity
):
    net = model(num_layers=1, refiner_layers=1, **parts)
    name = "model.safetensors" if folder == "ar_distilled_action_model" else "diffusion_pytorch_model.safetensors"
    where = tmp_path / project / folder
    where.mkdir(parents=True)
    save_file(original(net.state_dict()), where / name)
    (where / "config.json").write_text(BESIDE)
    report = convert(where, tmp_path / "ours")
    assert report.layout.startswith(layout)
    assert maturity_of(where) == maturity_of(where / name) == maturity
    licence = json.loads((tmp_path / "ours" / "card.json").read_text())["licence"]
    assert "Tencent Hunyuan Community Licence" in licence
    assert ("HY-WorldPlay community licence" in licence) == (project == "HY-WorldPlay")
    convert(tmp_path / "ours", tmp_path / "back", to="hunyuan")
    assert same(load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors"), load_file(where / name))
    assert inspect(tmp_path / "ours").licence == licence  # it stays with the weights


def test_averaged_weights_are_taken_from_a_file_of_both_and_a_critic_never(tmp_path):
    raw, ema, critic = (randomise(HunyuanModel(SMALL), seed).state_dict() for seed in (1, 2, 3))
    (tmp_path / "config.json").write_text(BESIDE)
    wrapped = {f"model._fsdp_wrapped_module.{k}": v for k, v in original(ema).items()}
    both = {"critic": original(critic), "generator": original(raw), "generator_ema": wrapped, "step": 4000}
    torch.save(both, tmp_path / "model.pt")
    report = convert(tmp_path / "model.pt", tmp_path / "ema")
    assert report.chosen == "generator_ema"
    assert {s.name: s.what for s in report.sets} == {
        "critic": "critic", "generator": "weights", "generator_ema": "EMA weights",
    }  # fmt: skip
    assert same(load_model(tmp_path / "ema").state_dict(), ema)
    convert(tmp_path / "model.pt", tmp_path / "raw", which="raw")
    assert same(load_model(tmp_path / "raw").state_dict(), raw)
    torch.save({"generator_ema": wrapped}, tmp_path / "model.pt")
    with pytest.raises(InDoubtError, match="no raw weights, only generator_ema"):
        inspect(tmp_path / "model.pt", which="raw")
