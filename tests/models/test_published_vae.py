"""Published autoencoders become model directories that recipes and worlds read."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import randomise
from tests.models.test_wan_vae import SMALL

from worldline.cli import main
from worldline.models.convert.errors import CorruptFileError, KeysError, UnknownFamilyError, UnsafePickleError
from worldline.models.published_vae import convert_published, is_published
from worldline.models.registry import load_codec
from worldline.models.tiny_vae import TinyVAE, TinyVAEConfig
from worldline.models.wan_vae import WAN_VAE_VARIANTS, WanVAE, WanVAEConfig
from worldline.models.wan_vae.names import original_name
from worldline.schema import WorldlineError


@pytest.fixture(params=sorted(SMALL))
def published(request, tmp_path):
    """A `vae/` folder as diffusers writes it, and its weights."""
    folder = tmp_path / "vae"
    folder.mkdir()
    model = randomise(WanVAE(WanVAEConfig.from_diffusers(SMALL[request.param])), std=0.1)
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan", **SMALL[request.param]}))
    return folder, model


def test_the_command_makes_a_codec_of_the_same_weights(published, tmp_path, capsys):
    folder, model = published
    assert main(["convert", str(folder), "--out", str(tmp_path / "codec"), "--licence", "Apache-2.0"]) == 0
    assert "a video autoencoder" in capsys.readouterr().out
    codec = load_codec(tmp_path / "codec")
    assert codec.config == model.config
    assert all(torch.equal(value, codec.state_dict()[key]) for key, value in model.state_dict().items())
    assert json.loads((tmp_path / "codec" / "card.json").read_text())["licence"] == "Apache-2.0"


def test_what_is_not_whole_is_refused(published, tmp_path):
    folder, _ = published
    weights = folder / "diffusion_pytorch_model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(WorldlineError, match="exists; choose"):
        convert_published(folder, folder)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "latents_std"}))
    with pytest.raises(WorldlineError, match="lacks 'latents_std'"):
        convert_published(folder, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({**config, "num_res_blocks": 3}))
    with pytest.raises(WorldlineError, match="weights do not fit WanVAE"):
        convert_published(folder, tmp_path / "out")
    weights.write_bytes(weights.read_bytes()[:100])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorldlineError, match="is cut short: 100 bytes"):
        convert_published(folder, tmp_path / "out")
    weights.unlink()
    with pytest.raises(WorldlineError, match="has 0"):
        convert_published(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


GOLDEN = {
    "wan2.1": {
        "quant_conv.weight": "conv1.weight",
        "post_quant_conv.bias": "conv2.bias",
        "encoder.conv_in.weight": "encoder.conv1.weight",
        "encoder.down_blocks.2.resample.1.bias": "encoder.downsamples.2.resample.1.bias",
        "encoder.down_blocks.3.conv_shortcut.weight": "encoder.downsamples.3.shortcut.weight",
        "encoder.down_blocks.10.norm2.gamma": "encoder.downsamples.10.residual.3.gamma",
        "encoder.mid_block.attentions.0.to_qkv.weight": "encoder.middle.1.to_qkv.weight",
        "decoder.mid_block.resnets.1.conv2.bias": "decoder.middle.2.residual.6.bias",
        "decoder.up_blocks.0.upsamplers.0.time_conv.weight": "decoder.upsamples.3.time_conv.weight",
        "decoder.up_blocks.1.resnets.0.conv_shortcut.bias": "decoder.upsamples.4.shortcut.bias",
        "decoder.up_blocks.3.resnets.2.conv1.weight": "decoder.upsamples.14.residual.2.weight",
        "decoder.norm_out.gamma": "decoder.head.0.gamma",
        "decoder.conv_out.weight": "decoder.head.2.weight",
    },
    "wan2.2": {
        "encoder.down_blocks.0.downsampler.resample.1.weight": "encoder.downsamples.0.downsamples.2.resample.1.weight",
        "encoder.down_blocks.3.resnets.1.conv2.weight": "encoder.downsamples.3.downsamples.1.residual.6.weight",
        "decoder.up_blocks.0.resnets.0.conv1.weight": "decoder.upsamples.0.upsamples.0.residual.2.weight",
        "decoder.up_blocks.1.upsampler.time_conv.weight": "decoder.upsamples.1.upsamples.3.time_conv.weight",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight": "decoder.upsamples.2.upsamples.0.shortcut.weight",
    },
}


def full_size_keys(name):
    with torch.device("meta"):
        return WanVAE(WAN_VAE_VARIANTS[name]).state_dict()


@pytest.mark.parametrize("name", GOLDEN)
def test_every_tensor_has_a_name_of_its_own_in_wans_files(name):
    names = {key: original_name(key, WAN_VAE_VARIANTS[name]) for key in full_size_keys(name)}
    assert len(set(names.values())) == len(names) == {"wan2.1": 194, "wan2.2": 196}[name]
    assert {key: names[key] for key in GOLDEN[name]} == GOLDEN[name]


def test_names_agree_with_diffusers_own_converter():
    utils = pytest.importorskip("diffusers.loaders.single_file_utils", reason="its map is what is compared with")
    state = full_size_keys("wan2.1")
    theirs = {original_name(key, WAN_VAE_VARIANTS["wan2.1"]): value for key, value in state.items()}
    back = utils.convert_wan_vae_to_diffusers(theirs)
    assert back.keys() == state.keys()
    assert all(back[key] is value for key, value in state.items())


@pytest.fixture
def original(published, tmp_path, monkeypatch):
    """The same weights as Wan itself publishes them, and their model."""
    _, model = published
    monkeypatch.setattr("worldline.models.published_vae.WAN_VAE_VARIANTS", {"small": model.config})
    file = tmp_path / "Wan2.x_VAE.pth"
    torch.save({original_name(key, model.config): value for key, value in model.state_dict().items()}, file)
    return file, model


def test_wans_own_file_makes_the_same_codec(original, tmp_path, capsys):
    file, model = original
    (file.parent / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Wan\n")
    assert main(["inspect-checkpoint", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "original Wan" in shown
    assert "every key is explained" in shown
    assert main(["convert", str(file), "--out", str(tmp_path / "codec")]) == 0
    codec = load_codec(tmp_path / "codec")
    assert codec.config == model.config
    assert all(torch.equal(value, codec.state_dict()[key]) for key, value in model.state_dict().items())
    assert json.loads((tmp_path / "codec" / "card.json").read_text())["licence"] == "apache-2.0"


def test_a_file_that_is_not_quite_wans_is_refused(original, tmp_path, monkeypatch, capsys):
    file, _ = original
    out, sound = tmp_path / "out", torch.load(file)
    torch.save({**sound, "decoder.novelty": torch.zeros(1)}, file)
    with pytest.raises(KeysError, match=r"1 unexplained tensors \(decoder.novelty\)"):
        convert_published(file, out)
    torch.save({k: v for k, v in sound.items() if k != "encoder.head.2.bias"}, file)
    assert main(["inspect-checkpoint", str(file), "--json"]) == 0
    assert "1 missing tensors (encoder.head.2.bias)" in json.loads(capsys.readouterr().out)["verdict"]
    torch.save({**sound, "conv1.bias": torch.zeros(3)}, file)
    with pytest.raises(WorldlineError, match=r"weights do not fit WanVAE: .*quant_conv.bias \(3,\)"):
        convert_published(file, out)
    torch.save(sound, file)
    monkeypatch.setattr("worldline.models.published_vae.WAN_VAE_VARIANTS", WAN_VAE_VARIANTS)
    with pytest.raises(UnknownFamilyError, match=r"expected \[\(384, 16\), \(1024, 48\)\]"):
        convert_published(file, out)
    assert not out.exists()


def test_damaged_and_hostile_files_are_no_autoencoder_and_say_why(original, tmp_path):
    file, _ = original
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert not is_published(file)
    with pytest.raises(CorruptFileError):
        convert_published(file, tmp_path / "out")
    torch.save({"decoder.middle.0.residual.0.gamma": Bomb(tmp_path / "exploded")}, file)
    assert not is_published(file)
    with pytest.raises(UnsafePickleError, match="nothing was run"):
        convert_published(file, tmp_path / "out")
    assert main(["convert", str(file), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "exploded").exists()


def test_a_tiny_autoencoder_converts_too(tmp_path, monkeypatch, capsys):
    model = randomise(
        TinyVAE(TinyVAEConfig(latent_channels=4, encoder_width=8, decoder_widths=(16, 8, 8, 8), blocks=1))
    )
    monkeypatch.setattr("worldline.models.published_vae.TINY_VAE_VARIANTS", {"small": model.config})
    torch.save(model.state_dict(), tmp_path / "taew.pth")
    assert main(["inspect-checkpoint", str(tmp_path / "taew.pth")]) == 0
    assert "tiny autoencoder" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "taew.pth"), "--out", str(tmp_path / "codec")]) == 0
    codec = load_codec(tmp_path / "codec")
    assert codec.config == model.config
    assert all(torch.equal(value, codec.state_dict()[key]) for key, value in model.state_dict().items())
    torch.save({k: v for k, v in model.state_dict().items() if k != "decoder.1.bias"}, tmp_path / "taew.pth")
    with pytest.raises(KeysError, match=r"1 missing tensors \(decoder.1.bias\).*do not fit TinyVAE"):
        convert_published(tmp_path / "taew.pth", tmp_path / "out")


class Bomb:
    """Its unpickling makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))
