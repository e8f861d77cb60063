"""Tier 2: the arithmetic against independent references with random weights, and what is said where files are missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from worldline.evaluate import learned
from worldline.evaluate.learned import Clip, as_columns, fvd, jedi, parse, skipped
from worldline.evaluate.learned.distances import frechet_distance, frechet_of, polynomial_mmd
from worldline.evaluate.learned.lpips import SCALE, SHIFT, load
from worldline.evaluate.learned.video_features import features_of, prepared
from worldline.schema import ShapeError, WorldlineError

# -- distances ---------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_that_share_their_axes():
    """Closed form: |m|^2 + sum (sqrt a - sqrt b)^2, in any rotation."""
    rng = np.random.default_rng(0)
    a, b, apart = rng.uniform(0, 4, 12), rng.uniform(0, 4, 12), rng.normal(size=12)
    a[:4] = 0  # fewer clips than features: a singular covariance
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    found = frechet_distance(apart, turn * a @ turn.T, np.zeros(12), turn * b @ turn.T)
    assert found == pytest.approx(apart @ apart + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-6)


def test_frechet_distance_equals_the_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(50, 8)) + 0.3
    a, b = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(a @ b).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root)
    assert frechet_of(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_of(x, x) == pytest.approx(0, abs=1e-8)
    with pytest.raises(ShapeError, match=r"expected \[n, D\] and \[m, D\]"):
        frechet_of(x, y[:, :4])


def test_polynomial_mmd_by_loops():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(5, 7)), rng.normal(size=(6, 7)) + 0.5

    def mean(p, q):
        return np.mean([[(sum(u * v for u, v in zip(a, b, strict=True)) / 7) ** 2 for b in q] for a in p])

    assert polynomial_mmd(x, y) == pytest.approx(100 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-10)
    assert polynomial_mmd(x, x) == pytest.approx(0, abs=1e-10)


# -- LPIPS -------------------------------------------------------------------------------------------------------------

SHAPES = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))


@pytest.fixture
def lpips_folder(tmp_path) -> Path:
    """Random weights under the names that torchvision and lpips give theirs."""
    draw = torch.Generator().manual_seed(0)
    names = (0, 3, 6, 8, 10)
    backbone = {}
    for n, (out, width, size) in zip(names, SHAPES, strict=True):
        backbone[f"features.{n}.weight"] = (
            torch.randn(out, width, size, size, generator=draw) / (width * size**2) ** 0.5
        )
        backbone[f"features.{n}.bias"] = 0.1 * torch.randn(out, generator=draw)
    backbone["classifier.1.weight"] = torch.zeros(2, 2)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, s[0], 1, 1, generator=draw) for i, s in enumerate(SHAPES)}
    torch.save(backbone, tmp_path / "alexnet-owt-7be5be79.pth")
    torch.save(heads, tmp_path / "alex.pth")
    return tmp_path


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """[C, H, W] by the definition, in float64."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    cut = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(weight, cut, axes=((1, 2, 3), (0, 3, 4))) + bias[:, None, None]


def halved(x: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))


def by_hand(a: np.ndarray, b: np.ndarray, backbone: dict, heads: dict) -> float:
    """LPIPS of two pictures [H, W, 3], written without the code under test."""
    maps = []
    for picture in (a, b):
        x = picture.transpose(2, 0, 1) / 127.5 - 1
        x = (x - np.array(SHIFT)[:, None, None]) / np.array(SCALE)[:, None, None]
        found = []
        for n, stride, padding, pool in ((0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)):
            weight, bias = (backbone[f"features.{n}.{k}"].numpy().astype(np.float64) for k in ("weight", "bias"))
            x = np.maximum(convolved(halved(x) if pool else x, weight, bias, stride, padding), 0)
            found.append(x / (np.sqrt(np.square(x).sum(axis=0)) + 1e-10))
        maps.append(found)
    total = 0.0
    for i, (p, q) in enumerate(zip(*maps, strict=True)):
        weight = heads[f"lin{i}.model.1.weight"].numpy().reshape(-1, 1, 1)
        total += (weight * np.square(p - q)).sum(axis=0).mean()
    return total


def test_lpips_by_hand(lpips_folder):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 2, 64, 72, 3)).astype(np.uint8)
    network = load(lpips_folder)
    backbone, heads = torch.load(lpips_folder / "alexnet-owt-7be5be79.pth"), torch.load(lpips_folder / "alex.pth")
    found = network(a, b)
    assert found == pytest.approx([by_hand(x, y, backbone, heads) for x, y in zip(a, b, strict=True)], rel=1e-4)
    assert network(b, a) == pytest.approx(found, rel=1e-5)
    assert network(a, a) == pytest.approx(np.zeros(2), abs=1e-7)
    with pytest.raises(ShapeError, match="at least 63"):
        network(a[:, :40], b[:, :40])


def test_lpips_files_that_do_not_fit(lpips_folder):
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, lpips_folder / "alex.pth")
    with pytest.raises(WorldlineError, match="lacks the weights 'lin1"):
        load(lpips_folder)
    (lpips_folder / "alex.pth").unlink()
    with pytest.raises(WorldlineError, match=r"has no alex.pth; expected lpips=DIR"):
        load(lpips_folder)


def clips(count: int = 2, length: int = 65, size: tuple[int, int] = (64, 96)) -> list[Clip]:
    rng = np.random.default_rng(7)
    made = []
    for i in range(count):
        rows = {
            r: rng.integers(0, 256, (length, *size, 3)).astype(np.uint8) for r in ("model", "replay", "other-actions")
        }
        rows["frozen"] = np.repeat(rows["replay"][:1], length, axis=0)
        made.append(Clip(f"S7-roam-{i:03d}", "S7", "a red room", rows.__getitem__))
    return made


def test_lpips_reads_the_quarter_second_before_a_mark(lpips_folder):
    from worldline.evaluate.learned import lpips

    (clip,) = clips(1, 17)
    found = lpips.measure([clip], lpips_folder)
    network = load(lpips_folder)
    at = [13, 14, 15, 16]
    assert found["model"] == {"lpips_1s": pytest.approx(network(clip.row("model")[at], clip.row("replay")[at]).mean())}
    assert set(found["model"]) == {"lpips_1s"}  # the clip ends before 4 s
    assert len(found["weights"]) == 12
    assert "reason" in lpips.measure([Clip("S8", "S8", "", clip.row)], lpips_folder)


# -- networks over windows ---------------------------------------------------------------------------------------------


class Means(nn.Module):
    """Colour means of a window and of its second half: a network with I3D's signature and a known answer."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert return_features
        assert not rescale
        assert not resize
        return torch.cat([x.mean(dim=(2, 3, 4)), x[:, :, 8:].mean(dim=(2, 3, 4))], dim=1)


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(3, 4)).flatten(1)


def test_fvd_of_a_known_network(tmp_path, monkeypatch):
    torch.jit.script(Means()).save(str(tmp_path / "i3d.pt"))
    made = clips(3, 49, (32, 32))
    assert fvd.measure(made, tmp_path / "i3d.pt")["reason"].startswith("9 windows of 16 frames, 256 are needed")
    monkeypatch.setattr(fvd, "WINDOWS", 4)
    found = fvd.measure(made, tmp_path / "i3d.pt")

    def expected(row):
        cut = np.concatenate([c.row(row)[1:49].reshape(3, 16, 32, 32, 3) for c in made]) / 127.5 - 1
        return np.concatenate([cut.mean(axis=(1, 2, 3)), cut[:, 8:].mean(axis=(1, 2, 3))], axis=1)

    assert found["windows"] == 9
    for row in ("model", "frozen", "other-actions"):
        # rounded to 4 digits; resizing by 7 keeps a mean to about 1e-4
        assert found[row]["fvd"] == pytest.approx(frechet_of(expected(row), expected("replay")), abs=2e-3)


def test_jedi_normalises_and_checks(tmp_path, monkeypatch):
    torch.jit.script(Plain()).save(str(tmp_path / "vjepa.pt"))
    monkeypatch.setattr(jedi, "WINDOWS", 4)
    found = jedi.measure(clips(3, 49, (32, 32)), tmp_path / "vjepa.pt")
    assert found["model"]["jedi"] >= 0
    assert found["frozen"]["jedi"] > found["model"]["jedi"]  # random frames are like random frames
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(WorldlineError, match="is no TorchScript file"):
        jedi.measure(clips(3, 49, (32, 32)), tmp_path / "bad.pt")
    with pytest.raises(WorldlineError, match=r"expected \[2, D\]"):
        features_of(clips(1, 33, (32, 32)), "model", lambda x: x.mean(dim=(3, 4)))


def test_windows_are_cut_from_the_middle_and_keep_their_range():
    clip = np.full((1, 16, 30, 60, 3), 255, np.uint8)
    clip[:, :, :, :10] = clip[:, :, :, 50:] = 0
    x = prepared(clip)
    assert x.shape == (1, 3, 16, 224, 224)
    assert x.min() > 0.99  # the black sides fall away


# -- CLIP --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A tiny random CLIP with a byte-level tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        projection_dim=12,
    )  # fmt: skip
    model = transformers.CLIPModel(config)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_clip_equals_the_models_own_forward(clip_folder):
    from transformers import AutoTokenizer, CLIPModel

    from worldline.evaluate.learned.clip import DEVIATION, MEAN, Encoder

    encoder = Encoder(clip_folder)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        DEVIATION
    )[:, None, None]
    assert torch.allclose(encoder.prepared(frames), pixels, atol=1e-5)  # of the right size already
    tokens = AutoTokenizer.from_pretrained(clip_folder)(["a red room"], return_tensors="pt")
    with torch.inference_mode():
        out = CLIPModel.from_pretrained(clip_folder)(pixel_values=pixels, **tokens)
    assert torch.allclose(encoder.images(frames), out.image_embeds, atol=1e-5)
    assert torch.allclose(encoder.text("a red room"), out.text_embeds[0], atol=1e-5)


def test_clip_figures_and_the_aesthetic_head(clip_folder, tmp_path):
    from worldline.evaluate.learned import clip as module

    made = clips(2, 17, (32, 48))
    found = module.measure(made, clip_folder)
    assert found["replay"]["clip_truth"] == pytest.approx(1, abs=1e-5)
    assert found["frozen"]["clip_steady"] == pytest.approx(1, abs=1e-5)
    assert found["model"]["clip_truth"] < 1
    assert set(found["intervals"]) == {"clip_text", "clip_truth", "clip_steady"}
    torch.save({"weight": torch.zeros(1, 12), "bias": torch.tensor([5.5])}, tmp_path / "linear.pth")
    assert module.measure_aesthetic(made, clip_folder, tmp_path / "linear.pth")["model"]["aesthetic"] == pytest.approx(
        5.5
    )
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "linear.pth")
    with pytest.raises(WorldlineError, match=r"expected weight \(1, 12\)"):
        module.measure_aesthetic(made, clip_folder, tmp_path / "linear.pth")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WorldlineError, match="of type 'bert'"):
        module.measure(made, tmp_path)


# -- VBench and the options --------------------------------------------------------------------------------------------


def test_vbench_results_are_read_and_failures_told(tmp_path):
    from worldline.evaluate.learned import vbench

    said = {"motion_smoothness": [0.98, [{"video_path": "a.mp4", "video_results": 0.98}]]}
    assert vbench.score_of(said, "motion_smoothness") == 0.98
    with pytest.raises(WorldlineError, match="VBench wrote"):
        vbench.score_of({}, "motion_smoothness")
    command = tmp_path / "vbench"
    command.write_text("#!/bin/sh\necho 'no module named vbench' >&2\nexit 1\n")
    with pytest.raises(WorldlineError, match="cannot be run; expected vbench=FILE"):
        vbench.measure(clips(1, 17, (32, 32)), command)
    command.chmod(0o755)
    with pytest.raises(WorldlineError, match=r"--dimension subject_consistency failed \(no module named vbench\)"):
        vbench.measure(clips(1, 17, (32, 32)), command)


def test_options_name_what_is_missing(tmp_path):
    assert parse("") == {}
    assert parse(f"lpips={tmp_path}, clip={tmp_path}") == {"lpips": tmp_path, "clip": tmp_path}
    for text, message in (
        ("lpis=x", "expected NAME=PATH with NAME of lpips, fvd, jedi, clip, aesthetic, vbench"),
        ("lpips", "expected NAME=PATH"),
        (f"lpips={tmp_path}/none", "does not exist; expected lpips=DIR"),
        (f"aesthetic={tmp_path}", "aesthetic without clip"),
    ):
        with pytest.raises(WorldlineError, match=message):
            parse(text)
    for name in learned.NEEDS:
        assert skipped(name)["reason"].startswith("not asked for; it needs --tier2 ")


def test_measured_figures_become_columns():
    tiers = {
        "1": {"status": "skipped", "reason": ""}, "fvd": skipped("fvd"),
        "lpips": {"status": "ok", "clips": 2, "model": {"lpips_1s": 0.3}, "frozen": {"lpips_1s": 0.4},
                  "intervals": {"lpips_1s": [0.2, 0.4]}},
    }  # fmt: skip
    rows, units = as_columns(tiers)
    assert rows["model"]["lpips_1s"] == {"value": 0.3, "low": 0.2, "high": 0.4, "n": 2, "status": "ok", "reason": ""}
    assert rows["frozen"]["lpips_1s"]["low"] is None
    assert units["lpips_1s"]["column"]
    assert set(units) == {"lpips_1s"}
