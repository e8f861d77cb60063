"""The codec: causal, streamed decode equals whole decode, windows of latents are independent."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import randomise

from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.models.registry import load_model, save_model
from worldline.models.text import HashTextEncoder
from worldline.schema import WorldlineError


@pytest.fixture
def codec() -> NanoVAE:
    model = NanoVAE(NanoVAEConfig(latent_channels=4, encoder_widths=(8, 8, 16), decoder_widths=(8, 8, 16), blocks=1))
    randomise(model, std=0.1)
    model.latent_mean.copy_(torch.randn(4))
    model.latent_std.copy_(torch.rand(4) + 0.5)
    return model.eval()


@torch.no_grad()
def test_streamed_decode_equals_whole(codec):
    z = torch.randn(2, 7, 4, 2, 3)
    whole = codec.decode(z)
    assert whole.shape == (2, 25, 3, 16, 24)
    for sizes in ([1] * 7, [3, 1, 3], [4, 3]):
        state, parts = None, []
        for chunk in z.split(sizes, dim=1):
            video, state = codec.decode_stream(chunk, state)
            parts.append(video)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_latents_and_frames_are_causal(codec):
    video = torch.rand(1, 13, 3, 16, 24) * 2 - 1
    z = codec.encode(video)
    later = video.clone()
    later[:, 5:] += 0.5  # pixel frame 5 opens latent 2
    changed = (codec.encode(later) - z).abs().amax(dim=(0, 2, 3, 4)) > 0
    assert changed.tolist() == [False, False, True, True]
    z2 = z.clone()
    z2[:, 2] += 1
    frames = (codec.decode(z2) - codec.decode(z)).abs().amax(dim=(0, 2, 3, 4)) > 0
    assert frames.tolist() == [False] * 5 + [True] * 8  # latent 2 and, through the state, latent 3


@torch.no_grad()
def test_saved_and_loaded(codec, tmp_path):
    save_model(codec, tmp_path, {"licence": "Apache-2.0"})
    again, video = load_model(tmp_path), torch.rand(1, 5, 3, 16, 24)
    torch.testing.assert_close(again.encode(video), codec.encode(video), atol=0, rtol=0)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WorldlineError, match=r"no model\.safetensors"):
        load_model(tmp_path)


def test_clip_length_must_fit(codec):
    with pytest.raises(WorldlineError, match="cut the clip to 13 frames"):
        codec.encode(torch.zeros(1, 15, 3, 16, 24))


def test_text_is_deterministic_and_tells_words_and_order_apart():
    a, b = HashTextEncoder(16, 8), HashTextEncoder(16, 8)
    one = a.encode(["a blue hall", "a hall blue", "", "a red hall"])
    torch.testing.assert_close(one.tokens, b.encode(["A Blue, hall!", "a hall blue", "", "a red hall"]).tokens)
    assert not torch.equal(one.tokens[0], one.tokens[1])
    assert not torch.equal(one.tokens[0], one.tokens[3])
    assert one.mask.sum(1).tolist() == [4, 4, 1, 4]


def test_displacement_moves_the_picture_by_whole_pixels():
    from worldline.models.nano_vae import displaced

    frames = torch.rand(1, 3, 16, 24)
    field = torch.zeros(1, 2, 2, 3)
    torch.testing.assert_close(displaced(frames, field), frames, atol=1e-5, rtol=0)
    field[:, 0] = 2 * 3 / 24  # three pixels of 24, in shares of half the picture
    torch.testing.assert_close(displaced(frames, field)[..., :-3], frames[..., 3:], atol=1e-5, rtol=0)
