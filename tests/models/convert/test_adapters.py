"""LoRA files at the command line: recognised, fitted to published sizes, merged as peft merges."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import randomise
from tests.models.convert.conftest import write, write_shards

from worldline.cli import main
from worldline.models.convert.adapters import find_adapter, inspect_adapter
from worldline.models.convert.published import PUBLISHED
from worldline.models.lora import add_lora, lora_state, merge_lora
from worldline.models.lora_file import write_peft
from worldline.models.registry import load_model, save_model


@pytest.fixture
def adapter(small_wan):
    """A model with a live adapter on it."""
    model = add_lora(small_wan(), rank=3, alpha=5.0, targets=["to_q", "ffn.net.2"])
    for name, p in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(p, std=0.3)
    return model


def written(adapter, naming: str, folder):
    """The adapter as a project writes it."""
    if naming == "peft":
        write_peft(adapter, folder / "peft")
        return folder / "peft"
    state = lora_state(adapter, naming="comfyui" if naming == "comfyui" else "diffusers")
    if naming == "kohya suffixes":
        state = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in state.items()}
        alphas = {k.replace(".lora_down.weight", ".alpha"): torch.tensor(6.0) for k in state if "lora_down" in k}
        state = {k: v / 2 if "lora_up" in k else v for k, v in state.items()} | alphas
    file = folder / f"{naming}.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, file)
    return file


@pytest.mark.parametrize("naming", ["peft", "diffusers", "comfyui", "kohya suffixes"])
def test_every_naming_merges_alike(naming, adapter, small_wan, tmp_path, capsys):
    base = save_model(small_wan(), tmp_path / "base", {"licence": "Apache-2.0"})
    file = written(adapter, naming, tmp_path)
    assert main(["convert", str(file), "--base", str(base), "--merge", "--out", str(tmp_path / "out")]) == 0
    merged, expected = load_model(tmp_path / "out").state_dict(), merge_lora(adapter).state_dict()
    untouched = small_wan().state_dict()
    assert merged.keys() == expected.keys()
    moved = [k for k in merged if not torch.equal(merged[k], untouched[k])]
    assert len(moved) == 2 * 3
    for key, value in expected.items():
        torch.testing.assert_close(merged[key], value, atol=1e-6, rtol=1e-6)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["merged"]["layers"] == 6
    assert card["licence"] == "Apache-2.0"
    assert "merged into" in capsys.readouterr().out


def test_merges_as_peft_does(small_wan, tmp_path):
    peft = pytest.importorskip("peft", reason="compares with peft")
    config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["to_q", "to_v", "ffn.net.2"])
    theirs = peft.get_peft_model(small_wan("branch"), config)
    for name, p in theirs.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path / "peft")
    base = save_model(small_wan("branch"), tmp_path / "base", {"licence": "Apache-2.0"})
    assert (
        main(["convert", str(tmp_path / "peft"), "--base", str(base), "--merge", "--out", str(tmp_path / "out")]) == 0
    )
    expected = theirs.merge_and_unload().state_dict()
    for key, value in load_model(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-6)


def test_a_base_of_any_layout_to_any_other(adapter, small_wan, tmp_path):
    """Into shards of diffusers in bf16, out to diffusers: W + B A in fp32, rounded once."""
    state = {k: v.bfloat16() for k, v in small_wan().state_dict().items()}
    write_shards(tmp_path / "base", state, "diffusers")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    file = written(adapter, "comfyui", tmp_path)
    said = ["--base", str(tmp_path / "base"), "--merge", "--to", "diffusers", "--out", str(tmp_path / "out")]
    assert main(["convert", str(file), *said]) == 0
    merged = load_file(next((tmp_path / "out").glob("*.safetensors")))
    key, lora = "blocks.1.attn1.to_q.weight", lora_state(adapter)
    up, down = (lora[f"transformer.blocks.1.attn1.to_q.lora_{x}.weight"] for x in "BA")
    assert torch.equal(merged[key], (state[key].float() + up @ down).bfloat16())
    assert torch.equal(merged["proj_out.weight"], state["proj_out.weight"])


@pytest.mark.parametrize("published", ["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"])
@pytest.mark.parametrize("naming", ["diffusers", "comfyui"])
def test_inspection_names_the_base(published, naming, tmp_path, capsys):
    config, state = PUBLISHED[published], {}
    for block in range(config.num_layers):
        layer = f"transformer.blocks.{block}.attn1.to_q"
        if naming == "comfyui":
            layer = f"diffusion_model.blocks.{block}.self_attn.q"
        state[f"{layer}.lora_A.weight"] = torch.zeros(4, config.dim)
        state[f"{layer}.lora_B.weight"] = torch.zeros(config.dim, 4)
    file = tmp_path / "lora.safetensors"
    save_file(state, file)
    assert main(["inspect-checkpoint", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] == [published]
    assert (found["layers"], found["blocks"], found["ranks"]) == (
        config.num_layers,
        config.num_layers,
        {"4": config.num_layers},
    )
    assert ("ComfyUI" in found["made_by"]) == (naming == "comfyui")
    assert found["scale"] == "not stated: alpha = rank"
    assert main(["inspect-checkpoint", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert published in shown
    assert "a LoRA" in shown
    assert main(["convert", str(file), "--out", str(tmp_path / "o")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"LoRA (of {published})" in said
    assert "--base MODEL --merge --out DIR" in said
    assert not (tmp_path / "o").exists()


def test_what_does_not_fit_is_refused(adapter, small_wan, tmp_path, capsys):
    file = written(adapter, "diffusers", tmp_path)
    save_model(small_wan(dim=96), tmp_path / "wide")
    save_model(small_wan(num_layers=1), tmp_path / "short")
    for base, message in (("wide", "another size of the model"), ("short", "name no LoRA weight of a layer")):
        assert (
            main(["convert", str(file), "--base", str(tmp_path / base), "--merge", "--out", str(tmp_path / "o")]) == 2
        )
        said = " ".join(capsys.readouterr().err.split())
        assert message in said
        assert "does not fit" in said
    whole = write(tmp_path / "whole.safetensors", small_wan().state_dict(), "diffusers")
    assert find_adapter(whole) is None
    assert main(["convert", str(whole), "--base", str(tmp_path / "wide"), "--merge", "--out", str(tmp_path / "o")]) == 2
    assert "is none" in " ".join(capsys.readouterr().err.split())
    state = load_file(file) | {"text_encoder.layer.lora_A.weight": torch.zeros(2, 2)}
    save_file(state, tmp_path / "more.safetensors")
    assert inspect_adapter(tmp_path / "more.safetensors").unknown == ("text_encoder.layer.lora_A.weight",)
    assert not (tmp_path / "o").exists()


def test_an_adapter_of_a_recipe_is_one_too(small_wan, tmp_path):
    """A LoRA stage's own file, with layers of the camera that no published model has."""
    model = randomise(add_lora(small_wan("branch"), rank=2, targets=["attn1.to_q", "attn1.prope_o"]))
    save_file({k: v.contiguous() for k, v in lora_state(model).items()}, tmp_path / "adapter.safetensors")
    assert find_adapter(tmp_path) == tmp_path / "adapter.safetensors"
    found = inspect_adapter(tmp_path / "adapter.safetensors")
    assert found.unknown == ()
    assert found.parts == {"attn1.to_q": 2, "attn1.prope_o": 2}
