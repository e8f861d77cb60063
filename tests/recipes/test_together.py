"""A recipe on two processes leaves what one leaves: every stage done once, whole models, one log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.train.processes import together
from worldline import dist
from worldline.models.registry import load_model
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import run
from worldline.schema import WorldlineError
from worldline.train.checkpoint import checkpoints
from worldline.train.log import read_log, read_notes
from worldline.train.sharded_checkpoint import is_sharded

pytestmark = pytest.mark.timeout(900)  # several processes on a busy machine wait for each other

STAGES = ("camera", "ar", "ode", "cd", "dmd")


def run_recipe(recipe: str, directory: str, overrides: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    records = run(load_recipe(Path(recipe), list(overrides)), Path(directory)).records
    return [(record.name, record.status) for record in records]


def steps(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k.endswith("/loss")} for row in read_log(run_dir / stage / "train")]


@pytest.mark.slow
def test_a_recipe_on_two_processes_is_that_on_one(smallest, tmp_path):
    # Two micro batches an update: then each process takes one of those that a single process would take.
    more = (
        "evaluate.episodes=0",
        *(f"stages.{s}.train.{o}" for s in STAGES for o in ("accumulation=2", "log_every=1", "precision=fp32")),
    )
    alone = run_recipe(str(smallest), str(tmp_path / "alone"), more)
    both = together(2, run_recipe, str(smallest), str(tmp_path / "both"), more)
    assert both == [alone, alone]
    for stage in STAGES:
        one, two = steps(tmp_path / "alone", stage), steps(tmp_path / "both", stage)
        assert len(one) == len(two) > 0, stage
        load_model(tmp_path / "both" / stage / "model")
        record = json.loads((tmp_path / "both" / stage / "stage.json").read_text())
        assert record["status"] == "done"
    is_what_was_averaged(tmp_path / "both" / "camera")
    # Up to the first stage after the codec, which has one micro batch, data and weights would be the same.
    again = together(2, run_recipe, str(smallest), str(tmp_path / "both"), more)
    assert again == both, "all is skipped"
    assert run_recipe(str(smallest), str(tmp_path / "both"), more) == alone, "on one process too: the same hashes"


def figures(run_dir: Path, stage: str) -> list[float]:
    """What was measured on samples while a stage trained."""
    return [row["samples/psnr"] for row in read_notes(run_dir / stage / "train") if "samples/psnr" in row]


def test_samples_are_played_by_processes_that_share_a_models_weights(smallest, tmp_path):
    stages = ("camera", "ar", "ode", "cd", "dmd")
    watched = ["evaluate.episodes=0", "health.every=1", "health.sample_every=2", "health.budget=1.0"]
    watched += [f"stages.{s}.train.{o}" for s in stages for o in ("accumulation=2", "precision=fp32")]
    alone = run_recipe(str(smallest), str(tmp_path / "alone"), (*watched, "health.samples=false"))
    # On two processes that share the tokens of every sample, and (the student of dmd) whose rollouts stay gathered.
    over = ["stages.camera.train.sequence_parallel=2", "stages.dmd.train.keep_gathered=true"]
    both = together(2, run_recipe, str(smallest), str(tmp_path / "both"), (*watched, *over))
    assert both == [alone, alone]
    for stage, pictures in (("camera", ["step-00000002.png", "step-00000004.png"]), ("dmd", ["step-00000002.png"])):
        train = tmp_path / "both" / stage / "train"
        assert sorted(path.name for path in (train / "samples").iterdir()) == pictures
        assert len(figures(tmp_path / "both", stage)) == len(pictures)


def is_what_was_averaged(stage: Path) -> None:
    """A stage's model is the average in its last checkpoint, whose parts two processes wrote, to the bit."""
    (path,) = checkpoints(stage / "train" / "checkpoints")[-1:]
    assert is_sharded(path)
    model = dict(load_model(stage / "model").named_parameters())
    averaged = {f"model.ema/{name}": torch.zeros_like(p) for name, p in model.items()}
    dcp.load(averaged, checkpoint_id=path, no_dist=True)
    for name, p in model.items():
        assert torch.equal(p, averaged[f"model.ema/{name}"]), name


def fails_on_first(work: str) -> None:
    def bad() -> None:
        raise WorldlineError(work)

    dist.on_main(bad)


def test_a_failure_of_the_first_process_stops_all(tmp_path):
    first, second = together(2, fails_on_first, "no clips")
    assert str(first) == "no clips"
    with pytest.raises(WorldlineError, match=r"rank 0 failed.*no clips"):
        raise second
