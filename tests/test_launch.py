"""Launching: torchrun's command, the Slurm script, and the check before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from worldline.cli import main
from worldline.cli.launch import elastic, slurm_script
from worldline.recipes import preflight as checked
from worldline.recipes.devices import Device
from worldline.recipes.load import load_recipe
from worldline.recipes.preflight import DoesNotFitError, preflight


def test_torchrun_starts_the_same_command_with_restarts_that_find_each_other():
    command, environment = elastic(3, ["-m", "worldline.cli", "run", "nano"], restarts=2)
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "--max-restarts=2"]
    assert command[6:] == ["-m", "--", "worldline.cli", "run", "nano"]
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_the_slurm_script_is_bash_that_quotes_names_and_queues_again(tmp_path):
    run = ["worldline", "run", "it's here", "--set", "a.b=[1, 2]"]
    script = slurm_script("x", run, tmp_path / "log", nodes=2, nproc=4, time="1:00:00", options=("partition=gpu",))
    for line in ("--nodes=2", "--ntasks-per-node=4", "--time=1:00:00", "--signal=USR1@300", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in script
    assert "scontrol requeue" in script
    # Without srun: what the shell hands on is what was meant.
    inner = script.split("srun --kill-on-bad-exit=1 ")[1].split("\n")[0].replace("exec worldline", 'printf "%s|"')
    done = subprocess.run(["bash", "-c", inner], capture_output=True, text=True, check=True)
    assert done.stdout == "run|it's here|--set|a.b=[1, 2]|"
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_launch_prints_the_script_and_refuses_nodes_without_slurm(capsys):
    assert main(["launch", "nano-smoke", "--slurm", "--nodes", "2", "--set", "seed=3"]) == 0
    assert "worldline run nano-smoke --run-dir runs/nano-smoke --set seed=3" in capsys.readouterr().out
    assert main(["launch", "nano-smoke", "--nodes", "2"]) == 2
    assert "needs --slurm" in capsys.readouterr().err


def test_a_run_that_cannot_fit_is_refused_with_the_mend(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(checked, "this_device", lambda processes: Device("small", 6 * 2**30, 100.0))
    with pytest.raises(DoesNotFitError, match=r"stage '\w+' needs .* GiB .*--set"):
        preflight(load_recipe("wan-1.3b-small"))
    assert main(["run", "wan-1.3b-small", "--run-dir", str(tmp_path / "run")]) == 2
    assert "--no-preflight" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(checked, "this_device", lambda processes: Device("large", 600 * 2**30, 100.0))
    assert {s.name for s in preflight(load_recipe("wan-1.3b-small"), 4).stages} >= {"camera", "dmd"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recipe_runs_on_two_processes_and_goes_on_on_one(tmp_path):
    """The command a user types, through torchrun; then the same run on one process finds its stages done."""
    command = [
        sys.executable,
        "-m",
        "worldline.cli",
        "run",
        "nano-smoke",
        "--run-dir",
        str(tmp_path),
        "--until",
        "camera",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--nproc", "2"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "camera" / "model" / "model.safetensors").is_file()
    assert list((tmp_path / "camera" / "train" / "checkpoints").glob("*/.metadata")), "written by several processes"
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "▶" not in again.stdout, "nothing is left to do"
