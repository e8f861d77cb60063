"""Latents on disk and batches by counter."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import randomise
from tests.recipes.conftest import write_dataset
from worldline.data.dataset import open_dataset
from worldline.data.encode import encode_dataset, to_frames, to_video
from worldline.data.loader import LatentDataset
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.models.text import HashTextEncoder
from worldline.schema import TextEmbedding, WorldlineError


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


def test_large_clips_are_encoded_one_at_a_time_to_the_same_latents(parts, monkeypatch):
    clips, codec, text, out = parts
    encode_dataset(clips, codec, text, out, shard_clips=3)
    sizes, encode = [], codec.encode
    monkeypatch.setattr(codec, "encode", lambda video: (sizes.append(len(video)), encode(video))[1])
    monkeypatch.setattr("worldline.data.encode.PIXELS", 2 * 13 * 32 * 32)
    encode_dataset(clips, codec, text, out.with_name("again"), shard_clips=3)
    assert sizes == [2, 1, 2, 1, 1]
    a, b = (LatentDataset(root).select([0, 3]) for root in (out, out.with_name("again")))
    torch.testing.assert_close(a.latents, b.latents, atol=1e-5, rtol=1e-4)
    assert a.ids == b.ids
    assert torch.equal(a.cameras.w2c, b.cameras.w2c)


class Padded:
    """A text encoder of bf16 answers at true length, padded with rubbish that its mask hides."""

    def __init__(self) -> None:
        self.fingerprint, self.asked = "padded", []

    def encode(self, prompts):
        self.asked += prompts
        tokens, mask = torch.full((len(prompts), 7, 8), 9.0), torch.zeros(len(prompts), 7, dtype=torch.bool)
        for b, prompt in enumerate(prompts):
            n = 1 + len(prompt) % 5
            seed = torch.Generator().manual_seed(len(prompt))
            tokens[b, :n], mask[b, :n] = torch.randn(n, 8, generator=seed).bfloat16().float(), True
        return TextEmbedding(tokens, mask, self.fingerprint)


def test_a_prompt_is_kept_once_in_its_own_length_and_comes_back_exactly(parts):
    clips, codec, _, out = parts
    captions = ["red", "a long hall", "red", "", "red", "a long hall", "blue"]
    for row, caption in zip(clips.rows, captions, strict=True):
        row["caption"] = caption
    text = Padded()
    encode_dataset(clips, codec, text, out, shard_clips=3)
    assert text.asked == ["red", "a long hall", "", "blue"]
    stored = load_file(out / "text.safetensors")
    assert stored["tokens"].dtype == torch.bfloat16
    assert len(stored["tokens"]) == sum(1 + len(p) % 5 for p in text.asked)
    train = LatentDataset(out, "train")
    found, asked = train.select([1, 0, 3]).text, text.encode(["a long hall", "red", ""])
    assert torch.equal(found.mask, asked.mask)
    assert torch.equal(found.tokens, asked.tokens * asked.mask[..., None])
    assert LatentDataset(out, "heldout").select([1]).text.mask.sum() == 1 + len("blue") % 5


def test_embeddings_that_bf16_would_change_are_kept_whole(parts):
    clips, codec, text, out = parts
    encode_dataset(clips, codec, text, out)
    found = LatentDataset(out, "train").select([2]).text
    assert torch.equal(found.tokens, text.encode([clips[2].caption]).tokens)


def test_a_folder_of_the_first_format_is_refused(parts):
    clips, codec, text, out = parts
    encode_dataset(clips, codec, text, out)
    info = json.loads((out / "latents.json").read_text())
    (out / "latents.json").write_text(json.dumps({k: v for k, v in info.items() if k != "format"}))
    with pytest.raises(WorldlineError, match="another format than 2; run the encode stage again"):
        LatentDataset(out)


def test_a_training_split_on_maps_of_the_evaluation_is_refused(parts):
    clips, codec, text, out = parts
    encode_dataset(clips, codec, text, out)
    info = json.loads((out / "latents.json").read_text())
    assert {r["map_seed"] for r in info["rows"]} == {r["map_seed"] for r in clips.rows}
    held_out = next(r for r in info["rows"] if r["split"] == "heldout")
    held_out["map_seed"] = 990_007
    (out / "latents.json").write_text(json.dumps(info))
    assert len(LatentDataset(out, "train"))
    assert len(LatentDataset(out, "heldout"))
    next(r for r in info["rows"] if r["split"] == "train")["map_seed"] = 990_007
    (out / "latents.json").write_text(json.dumps(info))
    with pytest.raises(WorldlineError, match=r"maps \[990007\], which are kept for evaluation"):
        LatentDataset(out, "train")


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
