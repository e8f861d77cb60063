"""Broken, foreign, incomplete and hostile files: each its own typed error, and nothing of a pickle is run."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import sys
from collections import defaultdict
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from tests.models.convert.conftest import in_layout, write, write_shards

from worldline.cli import main
from worldline.models.convert import convert, inspect
from worldline.models.convert.errors import (
    ConvertError,
    CorruptFileError,
    InDoubtError,
    KeysError,
    NotACheckpointError,
    UnknownFamilyError,
    UnsafePickleError,
)
from worldline.models.registry import save_model
from worldline.schema import WorldlineError


class Bomb:
    """Its unpickling writes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"generator": b}, lambda b: {"generator": {"x": b}}])
@pytest.mark.parametrize("how", ["zip", "old torch", "bare pickle"])
def test_a_bomb_does_not_go_off(tmp_path, how, wrap):
    target, file = tmp_path / "exploded", tmp_path / "model.pt"
    content = wrap(Bomb(target))
    if how == "bare pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    for action in (inspect, lambda f: convert(f, tmp_path / "out")):
        with pytest.raises(
            UnsafePickleError, match=r"wants to call (posix|os|nt)\.mkdir while it is read; nothing was run"
        ):
            action(file)
    assert not target.exists()
    assert not (tmp_path / "out").exists()


def test_a_bomb_among_good_weights(small_wan, tmp_path):
    target, file = tmp_path / "exploded", tmp_path / "model.pt"
    write(file, small_wan().state_dict(), "self-forcing", config=Bomb(target))
    with pytest.raises(UnsafePickleError):
        inspect(file)
    assert not target.exists()


def test_configs_beside_the_weights_are_read_as_shells(small_wan, tmp_path):
    from argparse import Namespace

    file = tmp_path / "model.pt"
    write(file, small_wan().state_dict(), "self-forcing", args=Namespace(lr=1, kind=dict))
    report = inspect(file)
    assert not report.faults
    assert report.extras == ("args",)


class Config:
    """Pickles as OmegaConf's classes do: metadata, nodes, state hooks."""

    __module__, __qualname__ = "omegaconf.dictconfig", "DictConfig"

    def __init__(self):
        self.content, self.metadata = {"lr": [1e-5, "x"], "inner": self}, defaultdict(dict, kind=dict)

    def __getstate__(self):
        return dict(self.__dict__)

    def __setstate__(self, state):
        raise AssertionError("code of the pickled class was run")


class Easy(dict):
    """Pickles as EasyDict does: a dict that is its own attributes."""

    __module__, __qualname__ = "easydict", "EasyDict"

    def __init__(self):
        super().__init__(lr=1)
        self.__dict__ = dict(self)


@pytest.mark.parametrize("cls", [Config, Easy])
def test_a_config_of_a_package_that_is_not_here(small_wan, tmp_path, monkeypatch, cls):
    module_name = cls.__module__
    module = ModuleType(module_name)
    setattr(module, cls.__qualname__, cls)
    with monkeypatch.context() as here:
        here.setitem(sys.modules, module_name.split(".")[0], ModuleType(module_name.split(".")[0]))
        here.setitem(sys.modules, module_name, module)
        file = write(tmp_path / "model.pt", small_wan().state_dict(), "self-forcing", config=cls())
        assert not inspect(file).faults
    assert module_name not in sys.modules
    report = inspect(file)
    assert not report.faults
    assert report.extras == ("config",)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", NotACheckpointError, "git lfs pull"),
        (b"<!DOCTYPE html><html>login</html>", NotACheckpointError, "web page"),
        (b"GGUF\x03\x00\x00\x00", NotACheckpointError, "GGUF"),
        (b"\x00" * 64, NotACheckpointError, "header of 0 bytes"),
        (b"", NotACheckpointError, "no safetensors"),
        (struct.pack("<Q", 50) + b"{", CorruptFileError, "cut short"),
        (struct.pack("<Q", 4) + b"{]]}", CorruptFileError, "no JSON"),
        (struct.pack("<Q", 11) + b'{"a": "bc"}', CorruptFileError, "entry of a is broken"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, error, says):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(error, match=says):
        inspect(file)


@pytest.mark.parametrize("low", [0x80, 0x3C, 0x20, 0x0A])
def test_a_header_length_that_looks_like_something_else(small_wan, tmp_path, low):
    file = write(tmp_path / "model.bin.safetensors", small_wan().state_dict(), "wan")
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    padding = (low - length) % 256  # 0x80 begins a pickle, 0x3C is `<`
    file.write_bytes(struct.pack("<Q", length + padding) + raw[8 : 8 + length] + b" " * padding + raw[8 + length :])
    assert not inspect(file).faults


def test_the_container_is_told_by_its_bytes(small_wan, tmp_path):
    safe = write(tmp_path / "a.safetensors", small_wan().state_dict(), "wan").rename(tmp_path / "model.pt")
    assert inspect(safe).container == "safetensors"
    torch_file = write(tmp_path / "b.pt", small_wan().state_dict(), "wan").rename(tmp_path / "model.safetensors")
    with pytest.raises(NotACheckpointError, match="rename it"):
        inspect(torch_file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_files(small_wan, tmp_path, suffix, keep):
    layout = "wan" if suffix == ".safetensors" else "self-forcing"
    file = write(tmp_path / f"model{suffix}", small_wan().state_dict(), layout)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(CorruptFileError):
        inspect(file)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
def test_damaged_files_are_read_or_refused_in_our_words(small_wan, tmp_path, kind):
    file = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
    state = small_wan("branch", num_layers=1).state_dict()
    if kind == "old torch":
        torch.save({"generator": in_layout(state, "self-forcing")}, file, _use_new_zipfile_serialization=False)
    else:
        write(file, state, "wan" if kind == "safetensors" else "self-forcing")
    sound, rng, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(80):
        damaged, at = bytearray(sound), rng.randrange(8000)
        if rng.random() < 0.6:
            for i in range(rng.randint(1, 4)):
                damaged[at - i if rng.random() < 0.5 else -(at + 1)] = rng.randrange(256)
        else:
            del damaged[at : at + rng.randint(1, 40)]
        file.write_bytes(damaged)
        try:
            inspect(file, num_heads=2)
        except ConvertError:
            refused += 1
    assert refused > 20


def test_lying_safetensors_headers(tmp_path):
    def file(header, data=b""):
        raw = json.dumps(header).encode()
        path = tmp_path / "m.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
        return path

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for header, data in (
        ({"a": good}, b"12345678more"),
        ({"a": {**good, "shape": [3]}}, b"12345678"),
        ({"a": {**good, "shape": [-1, -2]}}, b"12345678"),
        ({"a": good, "b": good}, b"12345678"),
        ({"a": {**good, "data_offsets": [8, 16]}}, b"1234567812345678"),
    ):
        with pytest.raises(CorruptFileError):
            inspect(file(header, data))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            ["double_blocks.0.img_mod.linear.weight", "img_in.proj.weight", "txt_in.t_embedder.mlp.0.weight"],
            "HunyuanVideo-1.5",
        ),
        (["model.diffusion_model.patchify_proj.weight", "model.diffusion_model.adaln_single.linear.weight"], "LTX"),
        (["encoder.conv1.weight", "decoder.conv1.weight", "conv1.weight", "conv2.weight"], "a video VAE"),
        (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "is a LoRA"),
        (["lm_head.weight"], "nothing resembles"),
        (["blocks.0.self_attn.q.weight", "blocks.0.ffn.0.weight"], r"Wan \(original Wan\) 100%"),
    ],
)
def test_wrong_families_name_the_nearest(tmp_path, keys, says):
    save_file({k: torch.zeros(2) for k in keys}, tmp_path / "m.safetensors")
    with pytest.raises(UnknownFamilyError, match=says):
        inspect(tmp_path / "m.safetensors")


def test_unknown_missing_and_misshapen_keys_are_all_listed(small_wan, tmp_path):
    state = in_layout(small_wan().state_dict(), "wan")
    state["blocks.0.self_attn.novelty.weight"] = torch.zeros(2)
    state["vace_blocks.0.before_proj.weight"] = torch.zeros(2)
    del state["blocks.1.norm3.weight"]
    state["blocks.1.norm3.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "m.safetensors")
    report = inspect(tmp_path / "m.safetensors", num_heads=2)
    assert report.unknown == ("blocks.0.self_attn.novelty.weight", "vace_blocks.0.before_proj.weight")
    assert report.missing == ("blocks.1.norm2.weight",)
    assert report.misshapen == ("blocks.1.norm2.bias: [5], expected [48]",)
    with pytest.raises(KeysError, match=r"2 unexplained tensors \(blocks.0.self_attn.novelty.weight"):
        convert(tmp_path / "m.safetensors", tmp_path / "out", num_heads=2)
    assert not (tmp_path / "out").exists()


def test_tensors_without_size(small_wan, tmp_path):
    state = {k: torch.zeros([0] * v.ndim) for k, v in in_layout(small_wan().state_dict(), "wan").items()}
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(KeysError, match="a size of the model is zero"):
        inspect(tmp_path / "m.safetensors")


def test_two_names_for_one_tensor(small_wan, tmp_path):
    state = in_layout(small_wan().state_dict(), "wan")
    state["model.patch_embedding.bias"] = state["patch_embedding.bias"].clone()
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(KeysError, match=r"both mean patch_embedding.bias"):
        inspect(tmp_path / "m.safetensors")


def test_an_incomplete_camera_is_not_taken_for_none(small_wan, tmp_path):
    state = small_wan("branch").state_dict()
    del state["blocks.1.attn1.prope_o.bias"]
    write(tmp_path / "m.pt", state, "self-forcing")
    assert inspect(tmp_path / "m.pt", num_heads=2).missing == ("blocks.1.attn1.prope_o.bias",)


def test_absent_blocks_and_parts_show_as_missing(small_wan, tmp_path):
    model = small_wan("none", motion=True, actions=3)
    save_model(model, tmp_path / "m")
    for gone in ("blocks.1.", "motion_embedder", "action_embedder"):
        state = {k: v for k, v in model.state_dict().items() if gone not in k}
        save_file(state, tmp_path / "m" / "model.safetensors")
        missing = inspect(tmp_path / "m").missing
        assert missing == tuple(sorted(k for k in model.state_dict() if gone in k))
    with pytest.raises(InDoubtError, match="-2 attention heads"):
        inspect(tmp_path / "m", num_heads=-2)


def test_shards_that_are_lost_or_lead_astray(small_wan, tmp_path):
    index = write_shards(tmp_path, small_wan().state_dict(), "wan")
    first = sorted(tmp_path.glob("*-00001-*"))[0]
    content = json.loads(index.read_text())
    moved = first.rename(tmp_path / "elsewhere")
    with pytest.raises(NotACheckpointError, match="1 shards that are not there"):
        inspect(index)
    moved.rename(first)
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "more.weight": first.name}}))
    with pytest.raises(CorruptFileError, match="1 tensors that no shard holds"):
        inspect(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CorruptFileError, match="outside its folder"):
        inspect(index)
    index.unlink()
    with pytest.raises(NotACheckpointError, match="is shard 1 of 3"):
        inspect(first)


def test_folders_without_weights(tmp_path):
    with pytest.raises(NotACheckpointError, match="holds no weights"):
        inspect(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(NotACheckpointError, match="export"):
        inspect(tmp_path)
    with pytest.raises(NotACheckpointError, match="does not exist"):
        inspect(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_attention_heads": "two"}, "num_heads 'two'; expected int"),
        ({"num_attention_heads": 5}, "dim 48 over 5 heads"),
        ({"kind": "wan", "config": {"camera": "magic"}}, "camera 'magic'"),
        ({"num_layers": 10**9}, "num_layers 1000000000"),
        ({"kind": "wan", "config": {"wings": 2}}, "wings 2"),
        ({"kind": "wan", "config": 7}, "expected a table"),
    ],
)
def test_configs_that_cannot_be(small_wan, tmp_path, config, says):
    write(tmp_path / "model.safetensors", small_wan().state_dict(), "diffusers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConvertError, match=says):
        inspect(tmp_path)


def test_tables_that_hold_themselves(small_wan, tmp_path):
    endless: dict = {}
    endless["more"] = endless
    laughs: list = [torch.zeros(1)]
    for _ in range(60):
        laughs = [laughs, laughs]
    write(tmp_path / "m.pt", small_wan().state_dict(), "self-forcing", state=endless, laughs=laughs)
    assert not inspect(tmp_path / "m.pt").faults
    deep = b"[" * 100_000 + b"]" * 100_000
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    with pytest.raises(CorruptFileError):
        inspect(tmp_path / "m.safetensors")


def test_tensors_outside_a_table(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "m.pt")
    with pytest.raises(NotACheckpointError, match="expected a table of tensors"):
        inspect(tmp_path / "m.pt")
    torch.save({"step": 3}, tmp_path / "m.pt")
    with pytest.raises(UnknownFamilyError, match="holds no tensors"):
        inspect(tmp_path / "m.pt")


def test_commands(small_wan, tmp_path, capsys):
    file = write(tmp_path / "m.pt", small_wan("branch").state_dict(), "self-forcing-ema-fsdp")
    assert main(["inspect-checkpoint", str(file), "--json", "--heads", "2"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["layout"], data["chosen"], data["config"]["camera"]) == ("minWM", "generator_ema", "branch")
    assert main(["inspect-checkpoint", str(file)]) == 0
    assert "minWM" in capsys.readouterr().out
    assert main(["convert", str(file), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "give --heads" in shown
    assert "Traceback" not in shown
    assert main(["convert", str(file), "--out", str(tmp_path / "out"), "--heads", "2", "--to", "wan"]) == 0
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize("command", ["inspect-checkpoint", "convert"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "examples:" in capsys.readouterr().out


def test_every_error_is_ours():
    from worldline.models.convert import errors

    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert all(issubclass(kind, WorldlineError) for kind in kinds)
