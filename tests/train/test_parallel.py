"""Several processes do what one does: the same losses, gradients and averages, for every method, both ways of sharing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.jobs import (
    KINDS,
    alone,
    compiled,
    config,
    counted,
    gathered_while_scoring,
    laid_out,
    train_all,
    unequal_exit,
)
from tests.train.processes import together

from worldline.schema import WorldlineError
from worldline.train.parallel import LayoutConfig, shares

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


Cases = list[tuple[str, dict[str, Any]]]
PLACING = ("sequence_parallel", "keep_gathered", "recompute", "sharding", "layout")  # what may not change a result


def are_one(processes: int, run: Path, cases: Cases, job: Callable[..., Any] = train_all) -> None:
    found = together(processes, job, str(run), cases)
    for rank in found:
        if isinstance(rank, Exception):
            raise rank
    plain = [(kind, {k: v for k, v in options.items() if k not in PLACING}) for kind, options in cases]
    for number, (case, one) in enumerate(zip(cases, alone(plain), strict=True)):
        same(one, [of_rank[number] for of_rank in found], str(case))


def brief(kind: str) -> dict[str, Any]:
    """One step of the variants of distribution matching: all their phases run in the first."""
    return {"steps": 1} if kind.startswith("dmd ") else {}


def test_two_data_parallel_processes_are_one(tmp_path):
    are_one(2, tmp_path, [(kind, brief(kind)) for kind in KINDS])


def test_ways_of_placing_weights_are_one(tmp_path):
    cases: Cases = [
        ("dmd with everything", {"keep_gathered": True, "recompute": True}),
        ("teacher_forcing", {"sharding": "replicate"}),
        ("finetune", {"optimizer": "muon"}),
        ("dmd by adapters", {}),
    ]
    are_one(2, tmp_path, cases)


def test_sequence_parallel_processes_are_one(tmp_path):
    shared = {"sequence_parallel": 2, "accumulation": 1, "batch_size": 2}
    cameras = dict(zip(KINDS, ("plucker", "branch", "branch", "cross", "fused"), strict=False))
    cases = [(kind, {**shared, **brief(kind), "camera": cameras.get(kind, "fused")}) for kind in KINDS]
    are_one(2, tmp_path, [*cases, ("dmd by adapters", shared)])


@pytest.mark.slow
def test_both_axes_on_four_processes(tmp_path):
    cases: Cases = [
        ("dmd by chunks", {"sequence_parallel": 2, "recompute": True}),
        ("teacher_forcing", {"sequence_parallel": 4}),
        # HSDP: two copies, each cut in two.
        ("dmd with gan", {"layout": LayoutConfig(shard_group=2), "accumulation": 4, "steps": 1}),
        ("consistency", {"layout": LayoutConfig(shard_group=2), "sequence_parallel": 2, "keep_gathered": True}),
    ]
    are_one(4, tmp_path, cases)


@pytest.mark.slow
def test_heads_that_do_not_divide_are_shared_by_queries(tmp_path):
    """Keys and values are gathered: two heads over four processes, in every kind of sight (whole, mask, cache)."""
    cases: Cases = [
        (kind, {"heads": 2, "sequence_parallel": 4, "accumulation": 1, "camera": camera, **brief(kind)})
        for kind, camera in (("finetune", "branch"), ("teacher_forcing", "fused"), ("dmd by chunks", "branch"))
    ]
    are_one(4, tmp_path, cases)


def test_prompts_that_attend_to_themselves_are_one(tmp_path):
    """HunyuanVideo's prompts have a stream through all blocks and a mask; weights are gathered for it too."""
    cases: Cases = [
        ("teacher_forcing", {"backbone": "hunyuan"}),
        ("dmd", {"backbone": "hunyuan", "steps": 1, "recompute": True}),
        ("dmd", {"backbone": "hunyuan", "steps": 1, "sequence_parallel": 2}),
    ]
    are_one(2, tmp_path, cases)


def test_what_a_rollout_keeps_gathered_saves_gathers_and_changes_nothing(tmp_path):
    options = [{}, {"keep_gathered": True}]
    found = together(2, counted, str(tmp_path), [("dmd", o) for o in options])
    (one,) = alone([("dmd", {})])
    for number, case in enumerate(options):
        same(one, [of_rank[number][1] for of_rank in found], str(case))
    scattered, kept = (count for count, _ in found[0])
    # A unit (two blocks, the rest) is gathered by every forward of 3 chunks, their clean passes and the prompt: once a
    # rollout where it stays, and the scores' and the backward's own as before.
    assert kept < 0.4 * scattered


def test_a_score_that_runs_drops_what_the_rollout_kept(tmp_path):
    held = together(2, gathered_while_scoring, str(tmp_path))
    assert held == [{"generator": False, "seen": True}] * 2


@pytest.mark.parametrize(
    ("kind", "recompute"),
    [
        ("teacher_forcing", True),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in [("finetune", False), ("dmd", True)]),
    ],
)
def test_compiled_blocks_are_one(kind, recompute):
    """On one process; see below for several."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cases: Cases = [(kind, {"recompute": recompute, "steps": 1})]
    same(alone(cases)[0], alone(cases, compiled), kind)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "blocks are compiled"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_compiled_blocks_of_several_processes_are_one(tmp_path):
    cases: Cases = [
        ("teacher_forcing", {"sequence_parallel": 2}),
        ("dmd by chunks", {"sequence_parallel": 2, "recompute": True}),
        ("dmd with regression", {"recompute": True}),
    ]
    are_one(2, tmp_path, cases, compiled)


def test_an_adversary_is_not_compiled():
    with pytest.raises(WorldlineError, match="gan_weight=0"):
        alone([("dmd with gan", {})], compiled)


def test_a_shard_group_divides_the_processes(tmp_path):
    for error in together(2, laid_out, str(tmp_path), LayoutConfig(shard_group=3)):
        assert isinstance(error, WorldlineError)
        assert "expected one of [1, 2]" in str(error)
    with pytest.raises(WorldlineError, match="shard_group is 0"):
        LayoutConfig(shard_group=0)


def test_unequal_exit_steps_are_an_error_and_no_hang(tmp_path):
    for error in together(2, unequal_exit, str(tmp_path), limit=120):
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
