"""Adapters to and from peft and diffusers, live: the same numbers, whatever scale they were trained with."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tests.models.test_lora import asked, stirred

from worldline.models.lora import LoRAError, add_lora, load_lora, lora_state
from worldline.models.lora_file import read_adapter, write_peft

ALPHA = dict(r=2, lora_alpha=7, target_modules=["to_q", "to_v", "ffn.net.2"])


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="compares with peft")


def agrees(model, reference, text, base) -> None:
    got = asked(model, text)
    assert (got - base).abs().max() > 1e-2
    torch.testing.assert_close(got, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"alpha_pattern": {"attn1.to_q": 3}}, {"rank_pattern": {"attn2.to_v": 4}}]
)
def test_what_peft_trains_on_our_model_loads_with_its_scale(tiny_wan, tiny_text, tmp_path, peft, more):
    text = tiny_text()
    theirs = stirred(peft.get_peft_model(tiny_wan("branch"), peft.LoraConfig(**ALPHA, **more)))
    theirs.save_pretrained(tmp_path)
    ours = load_lora(tiny_wan("branch"), read_adapter(tmp_path))
    agrees(ours, asked(theirs.base_model.model, text), text, asked(tiny_wan("branch"), text))


def test_what_diffusers_trains_loads_with_its_scale(tiny_wan, tiny_text, tmp_path, peft):
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
    from worldline.models.diffusers_teacher import DiffusersTeacher

    text = tiny_text()
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=48,
        num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    theirs.load_state_dict(tiny_wan().state_dict())
    theirs.add_adapter(peft.LoraConfig(**ALPHA))
    stirred(theirs)
    theirs.save_lora_adapter(tmp_path, weight_name="alone.safetensors")
    diffusers.WanPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=peft.get_peft_model_state_dict(theirs),
        weight_name="pipeline.safetensors",
        transformer_lora_adapter_metadata=theirs.peft_config["default"].to_dict(),
    )
    reference = asked(DiffusersTeacher(theirs, per_frame=True), text)
    for name in ("alone", "pipeline"):
        ours = load_lora(tiny_wan(), read_adapter(tmp_path / f"{name}.safetensors"))
        agrees(ours, reference, text, asked(tiny_wan(), text))


def test_peft_loads_what_we_write(tiny_wan, tiny_text, tmp_path, peft):
    text, model = tiny_text(), tiny_wan("branch")
    base = asked(model, text)
    stirred(add_lora(model, 2, 6.0, ["to_q", "prope_o", "ffn.net.2"]))
    theirs = peft.PeftModel.from_pretrained(tiny_wan("branch"), str(write_peft(model, tmp_path)))
    agrees(theirs.base_model.model, asked(model, text), text, base)


def test_a_file_without_a_stated_scale_keeps_its_own(tiny_wan, tmp_path):
    state = lora_state(stirred(add_lora(tiny_wan(), 2, 6.0)))
    save_file(state, tmp_path / "a.safetensors")
    found = read_adapter(tmp_path / "a.safetensors")
    assert found.keys() == state.keys()


@pytest.mark.parametrize(
    ("header", "said"), [({"lora_adapter_metadata": '{"use_dora": true}'}, "is DoRA"), (None, "cannot be read")]
)
def test_what_is_no_lora_is_refused(tmp_path, header, said):
    file = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata=header)
    if header is None:
        file.write_bytes(b"<html>")
    with pytest.raises(LoRAError, match=said):
        read_adapter(file)
    with pytest.raises(LoRAError, match="cannot be read"):
        read_adapter(tmp_path / "nowhere")
