"""Published autoencoders become model directories that recipes and worlds read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import randomise
from tests.models.test_wan_vae import SMALL

from worldline.cli import main
from worldline.models.registry import load_codec
from worldline.models.wan_vae import WanVAE, WanVAEConfig
from worldline.models.wan_vae.published import convert_published
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
    assert "a Wan autoencoder" in capsys.readouterr().out
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
    with pytest.raises(WorldlineError, match="fetch it again"):
        convert_published(folder, tmp_path / "out")
    weights.unlink()
    with pytest.raises(WorldlineError, match="has 0"):
        convert_published(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
