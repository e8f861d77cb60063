"""Run the studies: one training run after the other, each a run directory; finished ones are skipped, a stopped one goes on.

On disk: <out>/shared (data and latents, which all runs take over), <out>/runs/<trial>, <out>/reference.json,
<out>/results.json, <out>/ablation.html. The last two are written after every run: they show what there is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from worldline.data.loader import LatentDataset
from worldline.functional.camera import invert_se3, relative_motion
from worldline.recipes.graph import Interrupted, Progress
from worldline.recipes.pipeline import run
from worldline.recipes.schema import Recipe
from worldline.recipes.studies import LEVELS, STUDIES, Preset, Trial, study_recipe, trials
from worldline.recipes.validating import measured, validation_episodes, validation_player
from worldline.recipes.workspace import Workspace
from worldline.train.log import read_log
from worldline.train.validation import Measurement, history

Tell = Callable[[int, int, Trial], None]  # number of the run, of how many, which


def ablate(
    preset: Preset,
    out: Path,
    studies: tuple[str, ...] = STUDIES,
    *,
    fork: Path | None = None,
    overrides: tuple[str, ...] = (),
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Run what is missing and return the content of results.json.

    fork: a run whose equal data and latents are taken over. Raises Interrupted on Ctrl-C (the same call goes on), and what
    `run` raises.
    """
    wanted = trials(preset, studies)
    try:
        first = study_recipe(preset, wanted[0], overrides)
        run(first, out / "shared", until="encode", fork=fork, progress=progress)
        reference = _reference(first, out)
        for number, trial in enumerate(wanted):
            if tell is not None:
                tell(number + 1, len(wanted), trial)
            _run_one(study_recipe(preset, trial, overrides), out, trial, progress)
            results = collect(preset, out, studies, reference, first)
            _write(out, results)
    except Interrupted as stop:
        raise Interrupted(stop.stage, "every finished run is kept; the same command goes on") from stop
    return results


def _run_one(recipe: Recipe, out: Path, trial: Trial, progress: Progress | None) -> None:
    directory, stage = out / "runs" / trial.name, next(iter(recipe.stages))
    episodes = out / "shared" / "validation"
    if episodes.is_dir() and not (directory / "validation").is_dir():
        shutil.copytree(episodes, directory / "validation", copy_function=os.link)
    run(recipe, directory, until=stage, fork=out / "shared", progress=progress)
    shutil.rmtree(directory / stage / "train" / "checkpoints", ignore_errors=True)  # its models are kept


def _reference(recipe: Recipe, out: Path) -> dict[str, Any]:
    """What stands beside every figure: the model before its first step, a perfect one behind the codec, and how far cameras
    move in a step."""
    path = out / "reference.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    from worldline.evaluate.validation import ceiling

    ws, section, stage = Workspace(recipe, out / "shared"), recipe.validate, next(iter(recipe.stages))
    torch.manual_seed(recipe.seed)  # of the camera's weights, which the base lacks
    model = ws.model(recipe.stages[stage].init)
    start, details = measured(ws, stage, section, model)
    played = validation_player(ws, stage, section, model)
    frames = played.codec.grid.pixel_frames(recipe.data.latents)
    best = ceiling(played, validation_episodes(ws, section), frames)
    clips = LatentDataset(ws.run_dir / "encode" / "latents", "train", latents=recipe.data.latents)
    found = {
        "start": {"figures": start, "details": details},
        "codec": {"figures": best.figures(), "details": best.to_data()},
        "motion": _sizes(clips.w2c),
        "errors": {name: _errors(ws, recipe, name, clips) for name in LEVELS},
        "clips": len(clips),
    }
    path.write_text(json.dumps(found) + "\n")
    return found


def _sizes(w2c: torch.Tensor) -> dict[str, float]:
    """Root mean squares of the steps of paths [N, T, 4, 4]: rotation in degrees, translation in the model's units."""
    steps = relative_motion(w2c)[:, 1:]
    turn, move = (steps[..., part].square().sum(-1).mean().sqrt() for part in (slice(0, 3), slice(3, 6)))
    return {"rotation": round(float(torch.rad2deg(turn)), 4), "translation": round(float(move), 5)}


def _errors(ws: Workspace, recipe: Recipe, level: str, clips: LatentDataset) -> dict[str, float]:
    """How wrong cameras of a level are: of a step, and of the last frame's attitude in degrees."""
    noisy = LatentDataset(
        ws.run_dir / "encode" / "latents", "train", latents=recipe.data.latents, pose_noise=LEVELS[level]
    )
    true, wrong = (relative_motion(c.w2c)[:, 1:] for c in (clips, noisy))
    turn, move = ((wrong - true)[..., part].square().sum(-1).mean().sqrt() for part in (slice(0, 3), slice(3, 6)))
    apart = invert_se3(clips.w2c[:, -1]) @ noisy.w2c[:, -1]
    cosine = (apart[:, :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    end = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).mean()
    return {
        "rotation": round(float(torch.rad2deg(turn)), 4),
        "translation": round(float(move), 5),
        "end": round(float(end), 3),
    }


def collect(
    preset: Preset, out: Path, studies: tuple[str, ...], reference: dict[str, Any], recipe: Recipe
) -> dict[str, Any]:
    """The content of results.json: every finished run, and the studies that were asked for, now or before."""
    from worldline.evaluate.ablation import SCHEMA, Run, study
    from worldline.evaluate.results import stamp

    stage, runs = next(iter(recipe.stages)), []
    start = Measurement(0, reference["start"]["figures"], reference["start"]["details"])
    for trial in trials(preset):
        directory = out / "runs" / trial.name / stage
        if (directory / "model" / "card.json").is_file():
            card = json.loads((directory / "model" / "card.json").read_text())
            lines = [line for line in read_log(directory / "train") if "flow/loss" in line]
            runs.append(
                Run(
                    name=trial.name, level=trial.level, batch=trial.batch, seed=trial.seed, studies=trial.studies,
                    measured=sorted(history(directory / "train").values(), key=lambda m: m.step),
                    seconds=float(card["seconds"]), losses=[(int(line["step"]) + 1, line["flow/loss"]) for line in lines],
                )
            )  # fmt: skip
    asked = [s for s in STUDIES if s in studies or any(r.studies == (s,) for r in runs)]
    train = recipe.stages[stage].train
    return {
        "schema": SCHEMA,
        "preset": asdict(preset),
        "stamp": stamp(),
        "training": {
            "optimizer": train.optimizer,
            "lr": train.lr,
            "schedule": train.schedule,
            "ema_decay": train.ema_decay,
        },
        "levels": {name: asdict(LEVELS[name]) for name in preset.levels},
        "reference": {k: {"figures": v["figures"]} if k in ("start", "codec") else v for k, v in reference.items()},
        "wanted": [t.name for t in trials(preset, tuple(asked))],
        "runs": [r.to_data() for r in runs],
        "studies": {name: study(name, runs, preset.levels, start) for name in asked},
    }


def _write(out: Path, results: dict[str, Any]) -> None:
    from worldline.evaluate.ablation_page import page
    from worldline.evaluate.store import write_json

    write_json(out / "results.json", results)
    (out / "ablation.html").write_text(page(results))
