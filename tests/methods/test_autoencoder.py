"""The codec's loss: what it teaches, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from worldline.functional.warp import turning_field
from worldline.methods.autoencoder import AutoencoderConfig, PixelBatch, autoencoder_loss, turns_in_group
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return NanoVAE(NanoVAEConfig(latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), blocks=1))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    yaw = math.radians(2.0) * torch.arange(5.0).expand(2, 5)
    return PixelBatch(torch.rand(2, 5, 3, 16, 24) * 2 - 1, yaw, torch.tensor([0.44, 0.66, 0.5, 0.5]))


def losses(codec, batch, **options):
    return autoencoder_loss(codec, batch, AutoencoderConfig(**options), torch.Generator().manual_seed(0))


def test_a_frozen_encoder_gets_no_gradient_and_the_decoder_the_same_one(codec, batch):
    for p in codec.parameters():  # parts that start at zero would hide a missing gradient
        torch.nn.init.normal_(p, std=0.1)
    losses(codec, batch)["loss"].backward()
    whole = {k: p.grad.clone() for k, p in codec.named_parameters() if p.grad is not None}
    codec.zero_grad(set_to_none=True)
    losses(codec, batch, trains="decoder")["loss"].backward()
    for name, p in codec.named_parameters():
        if name.startswith("encoder."):
            assert p.grad is None, name
            assert whole[name].abs().sum() > 0, name
        elif name in whole:
            torch.testing.assert_close(p.grad, whole[name], atol=1e-6, rtol=1e-5, msg=name)


def test_fields_are_held_to_the_cameras_turns(codec, batch):
    turns = turns_in_group(batch.yaw, 4)
    torch.testing.assert_close(turns[0, 0], -math.radians(2.0) * torch.tensor([3.0, 2.0, 1.0, 0.0]))
    still = losses(codec, batch)["field"]  # a fresh codec displaces nothing
    torch.testing.assert_close(still, turning_field(turns, batch.K, 2, 3).abs().mean())
    mirrored = PixelBatch(batch.video, -batch.yaw, batch.K)
    with torch.no_grad():
        codec.decoder.motion.out.bias += 0.05  # frames lie to the right
    assert losses(codec, batch)["field"] != losses(codec, mirrored)["field"]


def test_motion_alone_learns_its_fields_and_nothing_else(codec, batch):
    for p in codec.parameters():
        torch.nn.init.normal_(p, std=0.1)
    losses(codec, batch, trains="motion")["loss"].backward()
    learns = {name for name, p in codec.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learns == {name for name, _ in codec.named_parameters() if name.startswith("decoder.motion.")}
