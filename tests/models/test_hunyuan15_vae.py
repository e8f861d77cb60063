"""HunyuanVideo-1.5's autoencoder against diffusers, whole and streamed, every parameter random."""

from __future__ import annotations

import json

import pytest
import torch

from worldline.models.hunyuan15_vae import HunyuanVAE, HunyuanVAEConfig
from worldline.models.published_vae import convert_published, is_published
from worldline.models.registry import load_codec
from worldline.schema import ShapeError, WorldlineError

SMALL = HunyuanVAEConfig(latent_channels=4, widths=(16, 32, 64, 64, 64))


def randomised(model):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            fan = p[0].numel() if p.ndim > 1 and "gamma" not in name else 1
            p.copy_(torch.randn(p.shape, generator=g) * (0.7 / fan**0.5 if fan > 1 else 0.2))
            if name.endswith("gamma"):
                p.add_(1.0)
    return model.eval()


@pytest.fixture(scope="module")
def codecs():
    diffusers = pytest.importorskip("diffusers")
    reference = randomised(diffusers.AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=SMALL.widths))
    own = HunyuanVAE(HunyuanVAEConfig.from_diffusers(reference.config)).eval()
    own.load_state_dict(reference.state_dict())
    return own, reference


def clip(frames, batch=1, seed=1):
    return torch.rand(batch, frames, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_equals_diffusers(codecs, frames):
    own, reference = codecs
    video = clip(frames)
    wanted = reference.encode(video.transpose(1, 2)).latent_dist.mode().transpose(1, 2) * own.config.scaling
    latents = own.encode(video)
    assert latents.std() > 0.05
    torch.testing.assert_close(latents, wanted, atol=1e-5, rtol=1e-5)
    z = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    decoded = reference.decode(z.transpose(1, 2) / own.config.scaling).sample.transpose(1, 2).clamp(-1, 1)
    assert 0.02 < decoded.std() < 0.9
    torch.testing.assert_close(own.decode(z), decoded, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_streams_equal_the_whole_in_any_pieces_and_interleave(codecs):
    own, _ = codecs
    z = torch.randn(2, 7, 4, 2, 3, generator=torch.Generator().manual_seed(3))  # two samples: a batch works, too
    whole = own.decode_stream(z, None)[0]
    states, parts = [None, None], [[], []]
    for a, b in zip(z.split((1, 3, 3), dim=1), z.split((4, 1, 2), dim=1), strict=True):
        for i, piece in enumerate((a[:1], b[1:])):
            video, states[i] = own.decode_stream(piece, states[i])
            parts[i].append(video)
    torch.testing.assert_close(torch.cat(parts[0], dim=1), whole[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(parts[1], dim=1), whole[1:], atol=1e-5, rtol=1e-5)
    video = clip(13, batch=2)
    latents, state = own.encode_stream(video[:, :5], None)
    later, _ = own.encode_stream(video[:, 5:], state)
    torch.testing.assert_close(torch.cat([latents, later], dim=1), own.encode(video), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_state_can_be_gone_back_to(codecs):
    own, _ = codecs
    z = torch.randn(1, 5, 4, 2, 3, generator=torch.Generator().manual_seed(4))
    _, state = own.decode_stream(z[:, :2], None)
    once = own.decode_stream(z[:, 2:], state)[0]
    own.decode_stream(z[:, 2:].flip(1), state)
    torch.testing.assert_close(own.decode_stream(z[:, 2:], state)[0], once, atol=0, rtol=0)


@torch.no_grad()
def test_the_attention_looks_back_and_a_window_bounds_how_far(codecs):
    exact, _ = codecs
    z = torch.randn(1, 6, 4, 2, 3, generator=torch.Generator().manual_seed(5))
    bounded = HunyuanVAE(HunyuanVAEConfig(**{**exact.config.__dict__, "attention_window": 2})).eval()
    bounded.load_state_dict(exact.state_dict())
    whole, state = exact.decode_stream(z, None)
    near, short = bounded.decode_stream(z, None)
    grid = exact.grid
    torch.testing.assert_close(near[:, : grid.pixel_frames(3)], whole[:, : grid.pixel_frames(3)], atol=1e-5, rtol=1e-5)
    assert (near - whole)[:, grid.pixel_frames(3) :].abs().max() > 1e-4
    kept = [max(part.shape[3] for part in parts if part.ndim == 6) for parts in (state, short)]
    assert kept == [6, 2]
    parts, state = [], None
    for latent in z.split(1, dim=1):
        video, state = bounded.decode_stream(latent, state)
        parts.append(video)
    torch.testing.assert_close(torch.cat(parts, dim=1), near, atol=1e-5, rtol=1e-5)


def test_a_diffusers_folder_is_converted(codecs, tmp_path):
    own, reference = codecs
    reference.save_pretrained(tmp_path / "vae")
    assert is_published(tmp_path / "vae")
    convert_published(tmp_path / "vae", tmp_path / "ours")
    found = load_codec(tmp_path / "ours")
    assert found.config == own.config
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), own.state_dict().values(), strict=True))
    assert "Tencent" in json.loads((tmp_path / "ours" / "card.json").read_text())["licence"]


def test_full_size_has_the_published_keys():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        own, reference = HunyuanVAE(), diffusers.AutoencoderKLHunyuanVideo15()
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}


def test_wrong_input_is_refused(codecs):
    own, _ = codecs
    with pytest.raises(ShapeError, match="divisible by 16"):
        own.encode(torch.zeros(1, 1, 3, 30, 48))
    _, state = own.encode_stream(clip(1), None)
    with pytest.raises(ShapeError, match="expected a multiple of 4"):
        own.encode_stream(clip(3), state)
    _, state = own.decode_stream(torch.zeros(1, 1, 4, 2, 3), None)
    with pytest.raises(ShapeError, match="cannot go on"):
        own.decode_stream(torch.zeros(2, 1, 4, 2, 3), state)
    with pytest.raises(WorldlineError, match="powers of two"):
        HunyuanVAEConfig(spatial=12)
