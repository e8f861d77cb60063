"""The accelerator benchmark, proved at a small size where there is no accelerator."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from benchmarks.gpu import wan
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from worldline.functional.masks import Visibility
from worldline.nn.kv_cache import RingCache


def run(out, *args: str) -> tuple[int, dict]:
    failed = wan.main(
        ["--device", "cpu", "--size", "tiny", "--runs", "1", "--peak-tflops", "1", "--out", str(out), *args]
    )
    return failed, json.loads(out.read_text())


def test_every_cell_is_measured_and_written(tmp_path):
    failed, found = run(tmp_path / "gpu.json")
    assert failed == 0
    cells = found["cells"]
    assert len(cells) == 2 + 3 * 3  # decoders; three modes under three cameras
    for mode in wan.MODES:
        assert all(
            cell["first_chunk_ms"] > cell["first_chunk_floor_ms"] > 0 for key, cell in cells.items() if mode in key
        )
    few = cells["tiny | ar_fewstep | camera fused | eager"]
    assert few["chunk_floor_ms"] > few["first_chunk_floor_ms"] > few["commit_floor_ms"]
    seen = found["streams"]["tiny | ar_fewstep | camera fused | eager | tiny decoder"]
    assert seen["sustained_fps"] < few["fps_without_decoder"]
    assert seen["first_frame_ms"] > few["first_chunk_ms"]
    table = (tmp_path / "gpu.md").read_text()
    assert all(key.replace(" | ", ", ") in table for key in cells)


def test_it_goes_on_where_it_was_and_a_failing_cell_costs_only_itself(tmp_path, monkeypatch):
    out, broken = tmp_path / "gpu.json", wan.codec_cell

    def fail(*_):
        raise RuntimeError("out of memory\nand a long story")

    monkeypatch.setattr(wan, "codec_cell", fail)
    failed, first = run(out, "--only", "eager", "tiny")
    assert failed == 2
    assert first["cells"]["tiny | decoder full | eager"]["error"] == "RuntimeError: out of memory"
    monkeypatch.setattr(wan, "codec_cell", broken)
    monkeypatch.setattr(wan, "clip_cell", fail)  # not called: those cells are there
    failed, second = run(out)
    assert failed == 0
    kept = "tiny | ar_fewstep | camera none | eager"
    assert second["cells"][kept] == first["cells"][kept]


def test_no_time_no_cell(tmp_path):
    wan.write({"cells": {}}, tmp_path / "gpu.json")
    _, found = run(tmp_path / "gpu.json", "--minutes", "0")
    assert found["cells"] == {}


@pytest.mark.parametrize("camera", ["none", "branch", "fused"])
def test_the_floor_counts_what_a_forward_computes(camera):
    """Against torch's own count, less what the floor leaves out (embeddings, head, the small camera products)."""
    subject = replace(
        wan.TINY["tiny"], config=replace(wan.TINY["tiny"].config, camera=camera, num_layers=8, freq_dim=8)
    )
    bench = wan.Bench("cpu", 1, None)
    model, text = wan.build(subject.config, bench), wan.prompt(subject.config, bench.device)
    context, ring = model.text_context(text), RingCache(Visibility(chunk=2, window=6))
    x, poses = torch.randn(1, 2, 4, *subject.grid), wan.cameras(2, bench.device)
    with torch.no_grad():
        for _ in range(2):
            model(x, torch.zeros(1, 2), context, cameras=poses, cache=ring)
            ring.advance(2)
        # torch counts no fused attention on a CPU
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
            model(x, torch.zeros(1, 2), context, cameras=poses, cache=ring)
    floor = wan.forward_flops(subject, 2, 6, camera)
    assert floor <= count.get_total_flops() <= 1.6 * floor


def test_published_sizes_have_the_published_cost():
    """research: 1.3B, 4 latents that see 21: 53.9 TFLOP; 5B at 480p: 18.6 with 17 latents of past."""
    for name, wanted in (("wan2.1-t2v-1.3b", 53.9), ("wan2.2-ti2v-5b", 18.6)):
        assert wan.forward_flops(wan.FULL[name], 4, 21, "none") == pytest.approx(wanted * 1e12, rel=0.03)
