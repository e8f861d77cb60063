"""The speed of the evaluated weights in their row, and of no others."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from worldline.evaluate.card import columns, told
from worldline.evaluate.speed import BenchMismatch, find_bench, read_bench, told_where, with_bench
from worldline.stream.bench import SCHEMA

BENCH = {
    "schema": SCHEMA, "fps": 61.25, "ttff_ms": 41.5, "a2p_p50_ms": 190.0, "a2p_p95_ms": 301.0, "chunks": 300,
    "weights": "abc", "dtype": "bfloat16", "steps": 2, "quantised": None, "device": "A CPU", "cores": 2, "threads": 1,
    "load_average": 0.25, "torch": "2.13", "date": "2026-01-01", "commit": "1234567", "seconds": 20.0,
}  # fmt: skip


def results() -> dict:
    figure = {"value": 1.0, "low": 0.9, "high": 1.1, "n": 6, "status": "ok", "reason": ""}
    return {
        "model": {"name": "m", "weights": "abc-bfloat16-2"},
        "figures": {"model": {"yaw_gain": figure}, "replay": {"yaw_gain": figure}},
        "units": {"yaw_gain": {"unit": "", "better": "one", "digits": 2, "about": "", "tier": 0}},
    }


def test_speed_is_in_the_models_row_and_in_no_other():
    made = with_bench(results(), BENCH, "bench.json")
    assert columns(made) == ["yaw_gain", "bench_fps", "bench_first_ms", "a2p_p50_ms", "a2p_p95_ms"]
    row = made["figures"]["model"]
    assert [told(row[n], made["units"][n]["digits"]) for n in columns(made)] == [
        "1.00 ± 0.10",
        "61.2",
        "42",
        "190",
        "301",
    ]
    assert "bench_fps" not in made["figures"]["replay"]
    assert told_where(made["bench"]) == (
        "A CPU, 2 cores, 1 threads, load 0.2, torch 2.13, bfloat16, 1234567, 2026-01-01"
    )


@pytest.mark.parametrize("change", [{"weights": "abd"}, {"dtype": "float32"}, {"steps": 4}, {"quantised": "int8"}])
def test_another_configuration_is_refused(change):
    with pytest.raises(BenchMismatch, match=r"the evaluation is of abc-bfloat16-2; run worldline bench"):
        with_bench(results(), BENCH | change, "bench.json")


def test_other_files_are_refused(tmp_path):
    for text, said in (
        ("{", "is no JSON"),
        ('{"schema": "worldline-bench-1"}', "expected worldline-bench-2"),
        ("[]", "schema None"),
    ):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(BenchMismatch, match=said):
            read_bench(tmp_path / "f.json")
    with pytest.raises(BenchMismatch, match="is no file"):
        read_bench(tmp_path / "absent.json")


def test_a_bench_of_the_weights_is_found_and_others_passed_over(tmp_path):
    import os

    for i, (name, made) in enumerate(
        (("bench-old.json", BENCH), ("bench-new.json", BENCH), ("bench-other.json", BENCH | {"weights": "x"}))
    ):
        (tmp_path / name).write_text(json.dumps(made))
        os.utime(tmp_path / name, (i, i))
    (tmp_path / "bench-torn.json").write_text("{")
    assert find_bench("abc-bfloat16-2", [tmp_path / "none", tmp_path]) == tmp_path / "bench-new.json"
    assert find_bench("abc-bfloat16-4", [tmp_path]) is None


def test_everything_beside_quality_is_in_one_report(tmp_path, monkeypatch):
    """A whole small evaluation with a bench file, a learned figure and a tracker."""
    pytest.importorskip("vizdoom")
    import torch

    from tests.evaluate.worlds import Faulty, tiny_plan
    from worldline.evaluate.publish import publish
    from worldline.evaluate.results import read_results
    from worldline.evaluate.runner import evaluate

    monkeypatch.setattr(Faulty, "info", lambda self, info=Faulty.info: replace(info(self), weights="abc-bfloat16-2"))
    plan = tiny_plan(monkeypatch, tmp_path / "run", tmp_path / "truth")
    names, shapes = (0, 3, 6, 8, 10), ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    torch.save(
        {f"features.{n}.weight": torch.randn(o, i, k, k) / 30 for n, (o, i, k) in zip(names, shapes, strict=True)}
        | {f"features.{n}.bias": torch.zeros(o) for n, (o, _, _) in zip(names, shapes, strict=True)},
        tmp_path / "alexnet.pth",
    )
    heads = {f"lin{i}.model.1.weight": torch.rand(1, s[0], 1, 1) for i, s in enumerate(shapes)}
    torch.save(heads, tmp_path / "alex.pth")
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(BENCH))
    rows = evaluate(Faulty(delay=4), plan)
    page, table = publish(plan, rows, {}, tier2={"lpips": tmp_path}, bench=bench)
    found, card = read_results(plan.out), (plan.out / "card.md").read_text()
    assert found["figures"]["model"]["bench_fps"]["value"] == 61.25
    assert found["figures"]["model"]["lpips_1s"]["value"] > 0
    assert found["tiers"]["fvd"]["status"] == "skipped"
    assert found["bench"]["where"]["device"] == "A CPU"
    for text in (page.read_text(), card):
        assert "bench_fps" in text
        assert "a2p_p95_ms" in text
        assert "lpips_1s" in text
        assert "A CPU, 2 cores" in text
    assert table.row_count > 10
    bench.write_text(json.dumps(BENCH | {"weights": "other"}))
    with pytest.raises(BenchMismatch, match="measured other-bfloat16-2"):
        publish(plan, rows, {}, bench=bench)
    if find_spec("tensorboard") is not None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        from worldline.evaluate.tracked import tell

        tell(["tensorboard"], plan, tmp_path / "track")
        events = EventAccumulator(str(tmp_path / "track" / "tensorboard"), size_guidance={"images": 0}).Reload()
        assert "eval/yaw_gain" in events.Tags()["scalars"]
        assert "eval-frozen/psnr_1s" in events.Tags()["scalars"]
        assert len([t for t in events.Tags()["images"] if t.startswith("clips/")]) == 3
