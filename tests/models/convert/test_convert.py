"""Round trips to the byte, every layout, what is chosen and what is refused."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import random_cameras, randomise
from tests.models.convert.conftest import SIZES, in_layout, write, write_shards

from worldline.models.convert import convert, inspect
from worldline.models.convert.errors import InDoubtError, KeysError, OutputError
from worldline.models.convert.keymaps import LAYOUTS
from worldline.models.registry import load_model, save_model
from worldline.models.wan import CameraMode, WanConfig, WanModel
from worldline.nn.layers import sinusoidal_embedding
from worldline.schema import TextEmbedding


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal names, dtypes and bytes."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and torch.equal(a[k].contiguous().view(torch.uint8), b[k].contiguous().view(torch.uint8))
        for k in a
    )


@pytest.mark.parametrize(
    ("layout", "camera"), [(n, c) for n in LAYOUTS for c in ("none", "branch") if (n, c) != ("diffusers", "branch")]
)
def test_every_layout_arrives_to_the_byte(small_wan, tmp_path, layout, camera):
    model = small_wan(camera)
    suffix = ".pt" if LAYOUTS[layout].group else ".safetensors"
    file = write(tmp_path / f"weights{suffix}", model.state_dict(), layout)
    before = file.read_bytes()
    report = convert(file, tmp_path / "out", num_heads=2)
    assert not report.faults
    assert report.roles.get("camera", 0) == (4 if camera == "branch" else 0)
    loaded = load_model(tmp_path / "out")
    assert loaded.config == model.config
    assert same(loaded.state_dict(), model.state_dict())
    assert file.read_bytes() == before


@pytest.mark.parametrize("to", ["worldline", "diffusers", "wan"])
def test_there_and_back_is_the_same_file(small_wan, tmp_path, to):
    file = write(tmp_path / "weights.safetensors", small_wan().state_dict(), "wan")
    convert(file, tmp_path / "first", num_heads=2)
    convert(tmp_path / "first", tmp_path / "there", to=to)
    convert(tmp_path / "there", tmp_path / "back")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_mixed_dtypes_and_views_arrive_to_the_byte(small_wan, tmp_path):
    state = {k: v.bfloat16() if "attn" in k else v for k, v in small_wan().state_dict().items()}
    wide = torch.randn(48, 96)
    state["blocks.0.attn1.to_q.weight"] = wide[:, ::2].bfloat16().T.contiguous().T  # strided
    file = write(tmp_path / "weights.pt", state, "self-forcing")
    convert(file, tmp_path / "out", num_heads=2)
    assert same(load_file(tmp_path / "out" / "model.safetensors"), {k: v.contiguous() for k, v in state.items()})


def test_shards_and_folders(small_wan, tmp_path):
    model = small_wan()
    index = write_shards(tmp_path / "pipeline" / "transformer", model.state_dict(), "diffusers")
    shard = sorted(index.parent.glob("*-00002-of-00003.safetensors"))[0]
    (index.parent / "config.json").write_text(json.dumps({"num_attention_heads": 2, "text_len": 512}))
    for n, path in enumerate((index, index.parent, tmp_path / "pipeline", shard)):
        report = convert(path, tmp_path / f"out{n}")  # heads from config.json
        assert report.container == "safetensors, 3 shards"
        assert same(load_model(tmp_path / f"out{n}").state_dict(), model.state_dict())


def test_ema_is_preferred_and_raw_can_be_had(small_wan, tmp_path):
    raw, ema, critic = (small_wan(seed=s).state_dict() for s in (1, 2, 3))
    file = tmp_path / "model.pt"
    content = {
        "generator": in_layout(raw, "self-forcing"),
        "generator_ema": in_layout(ema, "self-forcing-ema-fsdp"),
        "critic": in_layout(critic, "self-forcing"),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "step": 100,
    }
    torch.save(content, file)
    assert convert(file, tmp_path / "ema", num_heads=2).chosen == "generator_ema"
    assert convert(file, tmp_path / "raw", which="raw", num_heads=2).chosen == "generator"
    assert same(load_model(tmp_path / "ema").state_dict(), ema)
    assert same(load_model(tmp_path / "raw").state_dict(), raw)
    report = inspect(file)
    assert {s.name: s.what for s in report.sets} == {
        "generator": "weights",
        "generator_ema": "EMA weights",
        "critic": "critic",
        "optimizer": "not weights of this family",
    }
    assert report.extras == ("step",)
    assert report.wrappers == ("_fsdp_wrapped_module", "model")
    only = tmp_path / "only.pt"
    torch.save({"generator_ema": content["generator_ema"]}, only)
    with pytest.raises(InDoubtError, match="no raw weights, only generator_ema"):
        convert(only, tmp_path / "x", which="raw", num_heads=2)


@pytest.fixture
def their_class(monkeypatch):
    """diffusers' class. Islands of fp32 mean nothing in an fp32 file, and stop its loader where accelerate is missing."""
    model = pytest.importorskip("diffusers").WanTransformer3DModel
    monkeypatch.setattr(model, "_keep_in_fp32_modules", None)
    return model


@torch.no_grad()
def test_exported_folder_acts_the_same_in_diffusers(their_class, small_wan, tmp_path):
    model = small_wan()
    save_model(model, tmp_path / "ours", {"licence": "Apache-2.0"})
    convert(tmp_path / "ours", tmp_path / "theirs", to="diffusers")
    theirs, told = their_class.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x, sigma = torch.randn(2, 3, 4, 6, 4), torch.rand(2)
    text = TextEmbedding(torch.randn(2, 6, 8), torch.tensor([[True] * 4 + [False] * 2] * 2), "random")
    reference = theirs(x.transpose(1, 2), 1000 * sigma, text.tokens * text.mask[..., None], return_dict=False)[0]
    got = model(x, sigma[:, None].expand(-1, 3), model.text_context(text))
    torch.testing.assert_close(got, reference.transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert got.abs().max() > 0.1


@torch.no_grad()
def test_camera_survives_under_minwm_names(small_wan, tmp_path):
    model, cameras = small_wan("branch"), random_cameras(1, 3)
    save_model(model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "minwm", to="wan")
    assert "blocks.0.self_attn.prope_o.weight" in load_file(tmp_path / "minwm" / "diffusion_pytorch_model.safetensors")
    convert(tmp_path / "minwm", tmp_path / "back")
    back = load_model(tmp_path / "back")
    x, sigma = torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3)
    text = TextEmbedding(torch.randn(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")
    want = model(x, sigma, model.text_context(text), cameras=cameras)
    assert torch.equal(back(x, sigma, back.text_context(text), cameras=cameras), want)
    assert not torch.equal(back(x, sigma, back.text_context(text)), want)


@pytest.mark.parametrize(("camera", "motion"), [("branch", False), ("fused", False), ("none", True)])
def test_nothing_is_dropped_unasked(small_wan, tmp_path, camera, motion):
    model, part = small_wan(camera, motion=motion), "motion" if motion else "camera"
    save_model(model, tmp_path / "ours")
    with pytest.raises(KeysError, match=rf"its {part} part has no place in a diffusers model.*--leave-out {part}"):
        convert(tmp_path / "ours", tmp_path / "out", to="diffusers")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "ours", tmp_path / "out", to="diffusers", leave_out=[part])
    convert(tmp_path / "out", tmp_path / "back")
    config = load_model(tmp_path / "back").config
    assert (config.camera, config.motion) == ("none", False)


@pytest.mark.parametrize("camera", get_args(CameraMode))
def test_every_camera_survives_among_ourselves(small_wan, tmp_path, camera):
    model = small_wan(camera, motion=True, actions=3, camera_share=0.25)
    save_model(model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "copy", dtype="bfloat16")
    copy = load_model(tmp_path / "copy")
    assert copy.config == model.config
    assert same(copy.state_dict(), {k: v.bfloat16().float() for k, v in model.state_dict().items()})


@torch.no_grad()
def test_worldplay_keeps_its_actions_or_leaves_them_when_told(small_wan, tmp_path):
    model = small_wan("branch", actions=16)
    file = write(tmp_path / "model.pt", model.state_dict(), "worldplay-fsdp")
    report = inspect(file, num_heads=2)
    assert report.layout == "HY-WorldPlay 5B"
    assert report.roles["action"] == 4
    assert "Tencent" in report.licence
    convert(file, tmp_path / "out", num_heads=2)
    assert load_model(tmp_path / "out").config == model.config
    assert same(load_model(tmp_path / "out").state_dict(), model.state_dict())
    with pytest.raises(KeysError, match="--leave-out action"):
        convert(file, tmp_path / "wan", num_heads=2, to="wan")
    convert(file, tmp_path / "wan", num_heads=2, to="wan", leave_out=["action"])
    assert inspect(tmp_path / "wan").config.actions == 0


@torch.no_grad()
def test_worldplay_actions_act_as_they_do_there(their_class, small_wan, tmp_path):
    """HY-WorldPlay adds TimestepEmbedding(sinusoid(label)) to the clock's embedding; here that is our actions."""
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    model = small_wan(actions=16)
    save_model(model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="diffusers", leave_out=["action"])
    theirs = their_class.from_pretrained(tmp_path / "theirs")
    embedder = TimestepEmbedding(in_channels=16, time_embed_dim=48)
    embedder.load_state_dict(model.condition_embedder.action_embedder.state_dict())
    label = torch.tensor([57.0])
    added = embedder(Timesteps(num_channels=16, flip_sin_to_cos=True, downscale_freq_shift=0)(label))
    theirs.condition_embedder.time_embedder.register_forward_hook(lambda module, args, out: out + added)
    x, sigma, still = torch.randn(1, 3, 4, 6, 4), torch.tensor([0.4]), random_cameras(1, 3)
    text = TextEmbedding(torch.randn(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")
    reference = theirs(x.transpose(1, 2), 1000 * sigma, text.tokens, return_dict=False)[0].transpose(1, 2)
    cameras = dataclasses.replace(still, actions=sinusoidal_embedding(label.expand(1, 3), 16))
    got = model(x, sigma.expand(1, 3), model.text_context(text), cameras=cameras)
    torch.testing.assert_close(got, reference, atol=1e-5, rtol=1e-5)
    other = dataclasses.replace(still, actions=sinusoidal_embedding(label.expand(1, 3) - 1, 16))
    assert (model(x, sigma.expand(1, 3), model.text_context(text), cameras=other) - got).abs().max() > 1e-3


def image_model(tmp_path):
    """An original image-to-video file: the text-to-video tensors, and those that attend to a picture."""
    cfg = WanConfig(**SIZES, in_channels=36, freq_dim=16)
    state = dict(randomise(WanModel(cfg)).state_dict())
    for n in range(cfg.num_layers):
        for stem in ("add_k_proj", "add_v_proj"):
            state[f"blocks.{n}.attn2.{stem}.weight"] = torch.randn(48, 48)
            state[f"blocks.{n}.attn2.{stem}.bias"] = torch.randn(48)
        state[f"blocks.{n}.attn2.norm_added_k.weight"] = torch.randn(48)
    for stem, shape in (("norm1", [1280]), ("ff.net.0.proj", [1280, 1280]), ("ff.net.2", [48, 1280]), ("norm2", [48])):
        state[f"condition_embedder.image_embedder.{stem}.weight"] = torch.randn(shape)
        state[f"condition_embedder.image_embedder.{stem}.bias"] = torch.randn(shape[0])
    return state, write(tmp_path / "i2v.safetensors", state, "wan")


def test_image_to_video_goes_to_diffusers_but_not_to_us(their_class, tmp_path):
    state, file = image_model(tmp_path)
    convert(file, tmp_path / "theirs", to="diffusers", num_heads=2)
    loaded, told = their_class.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(dict(loaded.state_dict()), state)
    with pytest.raises(KeysError, match="its image part has no place in a worldline model; the rest"):
        convert(file, tmp_path / "ours", num_heads=2)
    state = load_file(file)
    del state["blocks.1.cross_attn.v_img.bias"]
    save_file(state, file)
    assert inspect(file).missing == ("blocks.1.attn2.add_v_proj.bias",)


def test_heads_in_doubt(small_wan, tmp_path):
    file = write(tmp_path / "weights.safetensors", small_wan().state_dict(), "wan")
    assert not inspect(file).heads_known
    with pytest.raises(InDoubtError, match="number of attention heads is not in the weights"):
        convert(file, tmp_path / "out")


def test_card_says_licence_and_origin(small_wan, tmp_path):
    file = write(tmp_path / "weights.safetensors", small_wan().state_dict(), "wan")
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\ntext")
    assert inspect(file).licence == "apache-2.0"
    convert(file, tmp_path / "out", num_heads=2, licence="CC0", origin="hub/some-model")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["licence"], card["origin"]) == ("CC0", "hub/some-model")
    assert card["converted"]["layout"] == "original Wan"
    convert(tmp_path / "out", tmp_path / "next", to="diffusers")
    assert json.loads((tmp_path / "next" / "card.json").read_text())["card_before"] == card


def test_a_folder_appears_whole_or_not_at_all(small_wan, tmp_path, monkeypatch):
    file = write(tmp_path / "w.safetensors", small_wan().state_dict(), "wan")
    seen = []

    def interrupt(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(file, tmp_path / "o" / "out", num_heads=2, progress=interrupt)
    assert list((tmp_path / "o").iterdir()) == []
    seen.clear()
    convert(file, tmp_path / "o" / "out", num_heads=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == inspect(file).nbytes
    with pytest.raises(OutputError, match="exists already"):
        convert(file, tmp_path / "o" / "out", num_heads=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            convert(file, tmp_path / "o" / "full", num_heads=2)
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["out"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match="GB free"):
        convert(file, tmp_path / "o" / "more", num_heads=2)
