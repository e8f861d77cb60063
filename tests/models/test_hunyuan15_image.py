"""The start image beside the prompt: the same tokens in training and in a stream, kept where the prompt is dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.test_hunyuan15 import STREAMED, decoupled, prompt, walk
from tests.models.test_hunyuan15_text import folder  # noqa: F401  (a fixture)

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.finetune import FinetuneConfig, drop_text
from worldline.methods.guided import guided_teacher_velocity
from worldline.models.hunyuan15_image import HunyuanImageEncoder
from worldline.models.image_cache import CachedImageEncoder
from worldline.rollout.bidirectional import sample
from worldline.rollout.loop import ChunkLoop
from worldline.rollout.plan import RolloutPlan
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import LatentBatch, ShapeError, WorldlineError

SIGMA, SCALE = 0.7, 3.0
N = STREAMED.text_lens[2]


def images(seed=0, batch=1):
    return torch.randn(batch, N, STREAMED.image_dim, generator=torch.Generator().manual_seed(seed)).bfloat16()


def texts(seed=0):
    """(prompt with an image, empty prompt), as encoders and loaders make them."""
    blind = prompt(STREAMED, [(6, 4)], image=False)
    return blind.seeing(images(seed)), prompt(STREAMED, [(1, 0)], seed=5, image=False)


def clip(T=5):
    g = torch.Generator().manual_seed(8)
    clean, noise = (torch.randn(1, T, 4, 4, 6, generator=g) for _ in range(2))
    return clean, (1 - SIGMA) * clean + SIGMA * noise


def streamed(model, text, empty, guidance, clean, x, cameras, visibility):
    """Velocities of a stream over a clean past, from its own guided prediction."""
    loop, found = (
        ChunkLoop(model, RolloutPlan(visibility, (SIGMA,), guidance=guidance), text, negative=empty, cache="ring"),
        [],
    )
    loop.commit(clean[:, :1], cameras[:1])
    for start in range(1, clean.shape[1], visibility.chunk):
        own = slice(start, start + visibility.chunk)
        loop._place(visibility.chunk)
        found.append(loop._guided(x[:, own], SIGMA, cameras[own]))
        loop.commit(clean[:, own], cameras[own])
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("guidance", [1.0, SCALE])
@torch.no_grad()
def test_training_and_streaming_see_the_same_image(guidance):
    """Teacher forcing's velocity is the stream's, the unconditional pass included; another image gives another one."""
    model, (clean, x), cameras = decoupled("branch"), clip(), walk(5, batch=1)
    visibility, found = Visibility(chunk=2, window=6, prefix=1), []
    sigma = torch.full((1, 5), SIGMA)
    for seed in (0, 1):
        text, empty = texts(seed)
        forced = guided_teacher_velocity(model, clean, x, sigma, text, empty, cameras, visibility, guidance)[:, 1:]
        got = streamed(model, text, empty, guidance, clean, x, cameras, visibility)
        torch.testing.assert_close(got, forced, atol=1e-5, rtol=1e-5)
        found.append(got)
    assert (found[0] - found[1]).abs().max() > 1e-3, "the image is seen"
    blind = prompt(STREAMED, [(6, 4)], image=False)
    unseen = streamed(model, blind, empty, guidance, clean, x, cameras, visibility)
    assert (found[0] - unseen).abs().max() > 1e-3


@torch.no_grad()
def test_guidance_keeps_the_image_of_every_sample():
    """v = u + s (c - u), with u of the empty prompt and the sample's own image (diffusers' image-to-video pipeline)."""
    model, (clean, x) = decoupled(), clip(3)
    both = prompt(STREAMED, [(6, 4), (3, 2)], image=False).seeing(images(batch=2))
    empty, visibility = texts()[1], Visibility(chunk=2, window=4, prefix=1)
    clean, x, sigma = clean.repeat(2, 1, 1, 1, 1), x.repeat(2, 1, 1, 1, 1), torch.full((2, 3), SIGMA)
    plain = [
        teacher_forced_velocity(model, clean, x, sigma, model.text_context(t), cameras=None, visibility=visibility)
        for t in (both, empty.expand(2).seeing(images(batch=2)))
    ]
    guided = guided_teacher_velocity(model, clean, x, sigma, both, empty, None, visibility, SCALE)
    torch.testing.assert_close(guided, plain[1] + SCALE * (plain[0] - plain[1]), atol=1e-4, rtol=1e-4)

    plan = RolloutPlan(Visibility(bidirectional=True, prefix=1), (1.0,), "euler", SCALE)
    whole = sample(model, plan, x, both, negative=empty.expand(2), given=clean[:, :1])
    same = sample(model, plan, x, both, negative=empty.expand(2).seeing(images(batch=2)), given=clean[:, :1])
    torch.testing.assert_close(whole, same)


def test_a_dropped_prompt_leaves_the_image_and_a_clip_without_start_has_none():
    both, empty = prompt(STREAMED, [(6, 4), (3, 2)], image=False).seeing(images(batch=2)), texts()[1]
    dropped = drop_text(both, empty, 1.0, torch.Generator())
    assert torch.equal(dropped.tokens[:, :-N], empty.expand(2).tokens[:, :-N])
    assert torch.equal(dropped.tokens[:, -N:], both.tokens[:, -N:])
    assert dropped.mask[:, -N:].all()
    assert dropped.image == N
    assert torch.equal(both.tokens[:, -N:, : STREAMED.image_dim], images(batch=2).float())
    rows = both.blind(torch.tensor([True, False]))
    assert not rows.mask[0, -N:].any()
    assert not rows.tokens[0, -N:].any()
    assert torch.equal(rows.tokens[1], both.tokens[1])
    assert empty.under(empty) is empty
    with pytest.raises(ShapeError, match="image tokens"):
        both.seeing(images(batch=3))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_fine_tuning_shows_the_image_where_it_gives_the_frame(share, monkeypatch):
    """Samples without a given first frame are text to video: no image tokens, whatever prompt they have."""
    model, (clean, _) = decoupled(), clip(3)
    both = prompt(STREAMED, [(6, 4), (3, 2)], image=False).seeing(images(batch=2))
    asked, make = [], model.text_context
    monkeypatch.setattr(model, "text_context", lambda text: (asked.append(text), make(text))[1])
    method = FinetuneConfig(use_cameras=False, image_prob=share, text_dropout=0.5).build(model, texts()[1])
    method.loss(LatentBatch(clean.repeat(2, 1, 1, 1, 1), both, None), Rng(0, 0))
    assert bool(asked[0].mask[:, -N:].all()) == bool(asked[0].mask[:, -N:].any()) == bool(share)
    assert bool(asked[0].tokens[:, -N:].any()) == bool(share)


def pictures(n=2):
    return list(np.random.default_rng(0).integers(0, 256, (n, 40, 60, 3), dtype=np.uint8))


def test_pictures_are_read_once_and_alike_in_any_company(folder, tmp_path, caplog):  # noqa: F811
    encoder, made = HunyuanImageEncoder(folder, size=(4, 16)), []
    cached = [
        CachedImageEncoder(lambda: (made.append(1), encoder)[1], tmp_path, fingerprint=encoder.fingerprint)
        for _ in "ab"
    ]
    first = cached[0].encode(pictures())
    assert first.dtype == torch.bfloat16
    assert first.shape == (2, 4, 16)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(cached[1].encode(pictures()[::-1]), first.flip(0))
    assert len(made) == 1, "the second answers from disk"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(pictures()[1:])[0], first[1])
    entry = next(tmp_path.rglob("*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:-1] + b"\x07")
    assert torch.equal(cached[1].encode(pictures()), first), "a damaged entry is made again"
    assert len(made) == 2
    assert "made again" in caplog.text


def test_other_folders_and_sizes_are_refused(folder, tmp_path):  # noqa: F811
    with pytest.raises(WorldlineError, match="image-to-video"):
        HunyuanImageEncoder(tmp_path)
    with pytest.raises(ShapeError, match=r"\(4, 16\) image tokens; this model expects \(5, 16\)"):
        HunyuanImageEncoder(folder, size=(5, 16)).encode(pictures())
    wide = HunyuanImageEncoder(folder, dtype=torch.float32)
    assert wide.fingerprint != HunyuanImageEncoder(folder).fingerprint
    with pytest.raises(WorldlineError, match="its cache was opened for other"):
        CachedImageEncoder(lambda: wide, tmp_path, fingerprint="other").encode(pictures())
