"""The doctor finds what is amiss, and says what mends it; predictions follow their formula."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest
import torch

from worldline.cli import main
from worldline.models.wan import WanConfig
from worldline.stream import doctor
from worldline.stream.doctor import examine
from worldline.stream.machine import ROWS, WIDTHS, Rates
from worldline.stream.plan import plan_of
from worldline.stream.predict import Overhead, known_worlds, measure_overhead, memory_of, predict

CPU = torch.device("cpu")


def statuses(**asked) -> dict[str, doctor.Check]:
    return {check.name: check for check in examine(CPU, compiling=False, **asked)}


def test_this_machine_is_in_order():
    found = statuses(port=0)
    assert not [check for check in found.values() if check.status == "FAIL"]
    assert all(check.mend for check in found.values() if check.status == "WARN")
    for name in ("attention: dense", "attention: blocks", "ring cache", "int8 layers", "fp8 layers", "JPEG", "H.264"):
        assert found[name].status == "PASS", found[name]
    assert found["CUDA graph"].status == "SKIP"


def test_a_backend_that_computes_something_else_fails(monkeypatch):
    right = doctor.FrameMask.attend
    monkeypatch.setattr(doctor.FrameMask, "attend", lambda self, q, k, v: 1.1 * right(self, q, k, v))
    found = statuses()
    assert found["attention: blocks"].status == "FAIL"
    assert found["attention: blocks"].mend
    assert found["ring cache"].status == "PASS"


def test_a_ring_that_forgets_fails(monkeypatch):
    monkeypatch.setattr(doctor.RingCache, "_slot", lambda self, frame: frame % 3)
    assert statuses()["ring cache"].status == "FAIL"


def test_a_check_that_breaks_ends_none_of_the_others(monkeypatch):
    def broken():
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_jpeg", broken)
    found = statuses()
    assert found["JPEG"].status == "FAIL"
    assert "no such thing" in found["JPEG"].found
    assert found["disk"].status in ("PASS", "WARN")


def test_a_taken_port_is_a_warning():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        check = statuses(port=held.getsockname()[1])["port"]
    assert check.status == "WARN"
    assert "--port" in check.mend


@pytest.mark.slow
def test_compiling_is_tried():
    found = {check.name: check for check in examine(CPU)}["compile"]
    assert found.status == "PASS" or "g++" in found.mend


@pytest.fixture(scope="module")
def sizes():
    """A world of the known kind, narrow and shallow."""
    config = WanConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=2, text_dim=16, text_len=8, camera="fused")
    _, codec, world = known_worlds()["Wan 2.1 1.3B"]
    return config, codec, replace(world, height=96, width=160)


def test_a_prediction_follows_its_formula(sizes):
    rates = Rates({(r, w): 1e9 for r in ROWS for w in WIDTHS}, {1: 5e8, 1000: 5e8}, 1e9)
    plan, got = plan_of(*sizes), predict("small", *sizes, rates, Overhead(1e-3, 1e-4), 1e9)
    computed = (plan.denoise_flops + plan.commit_flops) / 1e9 + plan.decode_flops / 5e8
    small = 5 * (1e-3 + 2 * 1e-4)  # four steps and a commit, two layers
    assert got.chunk_s == pytest.approx(max(computed, plan.bytes / 1e9) + small)
    assert got.fps == pytest.approx(12 / got.chunk_s)
    assert got.realtime == (got.fps >= 16)
    assert got.memory == memory_of(plan) > plan.weight_bytes + plan.cache_bytes
    assert got.fits
    assert not replace(got, free=1.0).fits
    quick = Rates(dict.fromkeys(rates.products, 1000000000000000.0), {1: 1e15, 1000: 1e15}, 1e9)
    assert predict("small", *sizes, quick, Overhead(0.0, 0.0), 1e9).chunk_s == pytest.approx(plan.bytes / 1e9, rel=1e-3)


def test_an_overhead_is_measured():
    found = measure_overhead(CPU, "float32")
    assert found.call + found.layer > 0


def test_the_command_writes_what_it_says_and_leaves_with_1_where_a_check_fails(tmp_path, monkeypatch, capsys):
    out = tmp_path / "doctor.json"
    assert main(["doctor", "--quick", "--device", "cpu", "--port", "0", "--json", str(out)]) == 0
    data = json.loads(out.read_text())
    assert data["failed"] == 0
    assert data["predictions"] == []
    printed = capsys.readouterr().out
    assert all(check["name"] in printed for check in data["checks"])
    monkeypatch.setattr(doctor, "_jpeg", lambda: doctor.Check("JPEG", "FAIL", "grey", "buy colour"))
    assert main(["doctor", "--quick", "--device", "cpu"]) == 1
    assert "-> buy colour" in capsys.readouterr().out
