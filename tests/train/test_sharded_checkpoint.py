"""Checkpoints of several processes: exact on as many, right on more or fewer, whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.jobs import in_turn, signalled, train
from tests.train.processes import together

from worldline.schema import WorldlineError
from worldline.train.checkpoint import checkpoints
from worldline.train.log import read_log
from worldline.train.parallel import LayoutConfig
from worldline.train.sharded_checkpoint import is_sharded

pytestmark = pytest.mark.timeout(900)  # several processes on a busy machine wait for each other

STEADY = {"schedule": "constant", "accumulation": 4, "save_every": 2}


def losses(run: Path) -> list[dict[str, float]]:
    return read_log(run)


def near(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Averaged weights that took the same path up to rounding."""
    for role, weights in one["weights"].items():
        for name, value in weights.items():
            off = float((value - other["weights"][role][name]).norm() / (1e-6 + value.norm()))
            assert off < 1e-3, f"{role}.{name}: {off:.1e}"


def test_resume_on_as_many_is_exact_and_on_more_or_fewer_right(tmp_path):
    whole, part, moved, behind = (str(tmp_path / name) for name in ("whole", "part", "moved", "behind"))
    two = together(
        2,
        in_turn,
        [
            (whole, "dmd", {**STEADY, "steps": 4}),
            (part, "dmd", {**STEADY, "steps": 2}),
            (part, "dmd", {**STEADY, "steps": 4}),
            (moved, "consistency", {**STEADY, "steps": 2}),
            (behind, "finetune", {**STEADY, "steps": 5, "save_every": 1, "keep": 3, "async_checkpoints": True}),
        ],
    )
    assert losses(tmp_path / "whole") == losses(tmp_path / "part"), "two processes resume bit for bit"
    for rank in (0, 1):
        for role, weights in two[rank][0]["weights"].items():
            for name, value in weights.items():
                assert torch.equal(value, two[rank][2]["weights"][role][name]), f"{role}.{name}"

    kept = checkpoints(tmp_path / "behind" / "checkpoints")
    assert [path.name for path in kept] == ["step-00000003", "step-00000004", "step-00000005"]
    assert all(map(is_sharded, kept))
    assert not list((tmp_path / "behind" / "checkpoints").glob(".writing-*"))

    # The state of step 4 is that of step 4, though step 5 ran while it was written: redo step 5 from it.
    before = losses(tmp_path / "behind")
    (kept[-1] / ".metadata").unlink()  # as after a crash: no longer a checkpoint
    redone = train(behind, "finetune", **{**STEADY, "steps": 5, "save_every": 9})
    for key, value in before[-1].items():
        assert redone["log"][-1][key] == pytest.approx(value, rel=1e-5)

    # 2 -> 1 -> 4 processes, against one that never stopped.
    train(moved, "consistency", **{**STEADY, "steps": 4})
    assert not is_sharded(checkpoints(tmp_path / "moved" / "checkpoints")[-1])
    # The four as two copies of weights cut in two (HSDP).
    four = together(4, in_turn, [(moved, "consistency", {**STEADY, "steps": 6, "layout": LayoutConfig(shard_group=2)})])
    single = train(str(tmp_path / "single"), "consistency", **{**STEADY, "steps": 6})
    for mine, theirs in zip(single["log"], losses(tmp_path / "moved"), strict=True):
        for key, value in mine.items():
            assert theirs[key] == pytest.approx(value, rel=1e-4, abs=1e-6), f"{key} at step {mine['step']}"
    for found in four:
        near(single, found[0])


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    for ends in together(2, signalled, str(tmp_path / "run")):
        assert ends == [(False, 3), (True, 6)]
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003", "step-00000006"]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run = str(tmp_path / "run")
    together(2, in_turn, [(run, "finetune", {**STEADY, "steps": 2})])
    with pytest.raises(WorldlineError, match="delete that folder"):
        train(run, "finetune", camera="branch", **{**STEADY, "steps": 4})


def test_the_best_checkpoint_is_kept_too(tmp_path):
    result = train(str(tmp_path), "finetune", steps=6, save_every=1, keep=1, keep_best="flow/loss")
    best = min(result["log"], key=lambda row: row["flow/loss"])["step"] + 1
    kept = [int(path.name.split("-")[1]) for path in checkpoints(tmp_path / "checkpoints")]
    assert kept == sorted({best, 6})


WORKER = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from tests.train.jobs import Clips, config, method
from worldline import dist
from worldline.train.loop import Trainer

def die_once(step, steps, last):
    if step == 5 and dist.rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == {when!r}:
        Path({run!r}).with_suffix(".died").touch()
        os.kill(os.getpid(), signal.SIGKILL)

dist.start(timeout=600)
Trainer(method("finetune"), Clips(), config(steps=8, save_every=2), Path({run!r}), progress=die_once).fit()
dist.stop()
"""


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_ends_where_it_would_have(tmp_path):
    from worldline.cli.launch import elastic

    script = tmp_path / "worker.py"
    paths = [p for p in (os.getcwd(), *sys.path) if p]
    script.write_text(WORKER.format(paths=paths, run=str(tmp_path / "killed"), when="0"))
    command, environment = elastic(2, [str(script)], restarts=1)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed.died").exists(), "a process was lost"
    together(2, in_turn, [(str(tmp_path / "whole"), "finetune", {"steps": 8, "save_every": 2})])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert losses(tmp_path / "killed")[-1]["step"] == 7
