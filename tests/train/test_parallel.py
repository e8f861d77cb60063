"""Several processes do what one does: the same losses, gradients and averages, for every method, both ways of sharing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.train.jobs import KINDS, alone, config, train_all, unequal_exit
from tests.train.processes import together

from worldline.schema import WorldlineError
from worldline.train.parallel import shares

pytestmark = pytest.mark.timeout(900)  # several processes on a busy machine wait for each other


def same(one: dict[str, Any], several: list[dict[str, Any]], what: str, tolerance: float = 2e-5) -> None:
    """Logged losses and norms, every gradient of every update, and averages, of every rank."""
    for mine, theirs in zip(one["log"], several[0]["log"], strict=True):
        assert mine.keys() == theirs.keys(), what
        for key, value in mine.items():
            assert theirs[key] == pytest.approx(value, rel=tolerance, abs=1e-7), f"{what}: {key} at step {mine['step']}"
    for rank, found in enumerate(several):
        assert found["gradients"].keys() == one["gradients"].keys()
        for update, gradients in one["gradients"].items():
            largest = max(float(g.abs().max()) for g in gradients.values())
            assert gradients.keys() == found["gradients"][update].keys(), f"{what}, {update}, rank {rank}"
            for name, gradient in gradients.items():
                off = float((gradient - found["gradients"][update][name]).abs().max())
                # Adam's first steps follow signs: what is next to zero may differ by far more after one.
                allowed = tolerance if update.startswith("0/") else 1e-3
                assert off <= allowed * largest, f"{what}: gradient of {name}, update {update}, rank {rank}: {off:.1e}"


def test_two_data_parallel_processes_are_one(tmp_path):
    cases: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in KINDS]
    cases += [("dmd", {"keep_gathered": True, "recompute": True}), ("teacher_forcing", {"sharding": "replicate"})]
    cases += [("finetune", {"optimizer": "muon"}), ("dmd by adapters", {}), ("dmd by chunks", {})]
    found = together(2, train_all, str(tmp_path), cases)
    for number, (case, one) in enumerate(zip(cases, alone(cases), strict=True)):
        same(one, [of_rank[number] for of_rank in found], str(case))


def test_sequence_parallel_processes_are_one(tmp_path):
    cases: list[tuple[str, dict[str, Any]]] = [
        (kind, {"camera": camera, "sequence_parallel": 2, "accumulation": 1, "batch_size": 2})
        for kind, camera in zip(KINDS, ("plucker", "branch", "cross", "fused", "fused"), strict=True)
    ]
    found = together(2, train_all, str(tmp_path), cases)
    plain = [(kind, {**options, "sequence_parallel": 1}) for kind, options in cases]
    for number, (case, one) in enumerate(zip(cases, alone(plain), strict=True)):
        same(one, [of_rank[number] for of_rank in found], str(case))


def test_both_axes_and_recomputed_blocks_on_four_processes(tmp_path):
    cases = [
        ("dmd by chunks", {"sequence_parallel": 2, "recompute": True}),
        ("teacher_forcing", {"sequence_parallel": 4}),
    ]
    found = together(4, train_all, str(tmp_path), cases)
    plain = [(kind, {**options, "sequence_parallel": 1}) for kind, options in cases]
    for number, (case, one) in enumerate(zip(cases, alone(plain), strict=True)):
        same(one, [of_rank[number] for of_rank in found], str(case))


def test_unequal_exit_steps_are_an_error_and_no_hang(tmp_path):
    for error in together(2, unequal_exit, str(tmp_path)):
        assert isinstance(error, WorldlineError)
        assert "exit step" in str(error)
        assert "Rng.shared" in str(error)


def test_micro_batches_divide_over_processes():
    assert shares(config(batch_size=16, accumulation=1), 1) == (16, 1)
    assert shares(config(batch_size=16, accumulation=4), 4) == (16, 4)
    assert shares(config(batch_size=16, accumulation=1), 2) == (8, 2)
    assert shares(config(batch_size=6, accumulation=4), 6) == (2, 12)
    with pytest.raises(WorldlineError, match="accumulation to 8"):
        shares(config(batch_size=1, accumulation=4), 8)


def test_muon_refuses_cut_matrices():
    with pytest.raises(WorldlineError, match="whole matrices"):
        config(optimizer="muon", sharding="full")
