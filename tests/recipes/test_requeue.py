"""A queue's warning: the run saves, ends with the code that asks to be queued again, and goes on from there."""

from __future__ import annotations

import os
import signal

import pytest

from worldline.cli import main
from worldline.cli.launch import STOPPED
from worldline.recipes.store import StageStore
from worldline.train.checkpoint import checkpoints
from worldline.train.loop import Trainer


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_warned_run_saves_and_asks_to_be_queued_again(smallest, tmp_path, monkeypatch, signum):
    step, run_dir = Trainer._train_step, tmp_path / "run"

    def warned(trainer: Trainer) -> None:
        step(trainer)
        if trainer.run_dir.parent.name == "camera" and trainer.step == 1:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Trainer, "_train_step", warned)
    command = ["run", str(smallest), "--run-dir", str(run_dir), "--until", "camera", "--no-preflight"]
    assert main(command) == STOPPED
    saved = checkpoints(run_dir / "camera" / "train" / "checkpoints")
    assert saved[-1].name == "step-00000002"
    assert StageStore(run_dir).read("camera").status == "interrupted"
    monkeypatch.setattr(Trainer, "_train_step", step)
    assert main(command) == 0
    assert StageStore(run_dir).read("camera").status == "done"
