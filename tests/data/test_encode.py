"""Latents on disk and batches by counter."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import randomise
from tests.recipes.conftest import write_dataset
from worldline.data.dataset import open_dataset
from worldline.data.encode import encode_dataset, to_frames, to_video
from worldline.data.loader import LatentDataset
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.models.text import HashTextEncoder
from worldline.schema import WorldlineError


@pytest.fixture
def parts(tmp_path):
    write_dataset(tmp_path / "clips", train=5, heldout=2)
    cfg = NanoVAEConfig(latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), blocks=1)
    codec = randomise(NanoVAE(cfg)).eval()
    return open_dataset(tmp_path / "clips"), codec, HashTextEncoder(8, 6), tmp_path / "latents"


def test_encoding_is_that_of_the_codec_and_is_not_done_twice(parts):
    clips, codec, text, out = parts
    encode_dataset(clips, codec, text, out, shard_clips=3)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    assert len(stamps) == 3
    (out / "shard-00001.safetensors").unlink()
    encode_dataset(clips, codec, text, out, shard_clips=3)
    again = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*")}
    assert [again[n] == stamps[n] for n in sorted(stamps)] == [True, False, True]
    train = LatentDataset(out, "train")
    with torch.no_grad():
        expected = codec.encode(to_video(clips[1].frames)[None])
    torch.testing.assert_close(train.select([1]).latents, expected, atol=1e-5, rtol=1e-4)
    assert len(train) == 5
    assert len(LatentDataset(out, "heldout", limit=1)) == 1


def test_poses_are_of_the_latents_in_the_first_frames_gauge(parts):
    clips, codec, text, out = parts
    encode_dataset(clips, codec, text, out)
    batch = LatentDataset(out, "train", latents=3).select([0, 2])
    # The walk is 4 units a pixel frame, 16 a latent, times the dataset's scale; w2c moves the other way.
    assert batch.cameras.w2c[0, :, 2, 3].tolist() == pytest.approx([0, -16 * 0.005, -32 * 0.005])
    assert batch.latents.shape[1] == 3


def test_batches_are_a_function_of_the_counter_and_cover_an_epoch(parts):
    clips, codec, text, out = parts
    encode_dataset(clips, codec, text, out)
    one, two = LatentDataset(out), LatentDataset(out)
    two.batch(0, 7, 2)
    for step in (3, 0):
        assert one.batch(0, step, 2).ids == two.batch(0, step, 2).ids
    epoch = [i for step in range(5) for i in one.batch(0, step, 1).ids]
    assert sorted(epoch) == sorted(one.ids)
    assert [i for step in range(5) for i in one.batch(1, step, 1).ids] != epoch


def test_another_codec_or_a_missing_encoding_is_refused(parts):
    clips, codec, text, out = parts
    with pytest.raises(WorldlineError, match="run the encode stage"):
        LatentDataset(out)
    encode_dataset(clips, codec, text, out)
    with pytest.raises(WorldlineError, match="choose another folder"):
        encode_dataset(clips, codec, HashTextEncoder(8, 7), out)
    with pytest.raises(WorldlineError, match="expected 1 to 4"):
        LatentDataset(out, latents=9)


def test_pixels_survive_the_round_trip():
    frames = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_frames(to_video(frames)), frames)
