"""One training run inside a stage: the trainer with a progress bar, its seed, its weights, its card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from worldline import dist
from worldline.methods.base import Method
from worldline.models.backbone import Backbone
from worldline.models.codec import Codec
from worldline.models.lora import LoRARole
from worldline.models.registry import build_model, kind_of, save_model
from worldline.recipes.builder import to_data
from worldline.recipes.cards import card
from worldline.recipes.networks import merged
from worldline.recipes.sampling import sampler
from worldline.recipes.validating import validator
from worldline.recipes.workspace import Workspace
from worldline.track import Tracker, open_trackers
from worldline.train.config import TrainConfig
from worldline.train.diagnosis import Finding
from worldline.train.health import Health
from worldline.train.loop import Batches, Result, Trainer
from worldline.train.parallel import sharded
from worldline.train.validation import FOLDER, history, read_best

# Settings that change how a run is watched and kept, not what it learns: no part of a stage's hash.
HARMLESS = (
    *("save_every", "save_minutes", "keep", "keep_best", "async_checkpoints", "log_every", "threads"),
    *("recompute", "compile", "sharding", "keep_gathered", "sequence_parallel"),
)
# Settings added since runs were finished: their defaults are what those runs had.
ADDED = ("moments",)


def decisive(train: TrainConfig) -> dict[str, Any]:
    """The settings that decide the weights."""
    kept = (f for f in fields(train) if f.name not in HARMLESS)
    kept = (f for f in kept if f.name not in ADDED or getattr(train, f.name) != f.default)
    return {f.name: to_data(getattr(train, f.name)) for f in kept}


def stage_seed(recipe_seed: int, stage: str, seed: int) -> int:
    """A seed of its own for every stage, so that no two stages draw the same noise."""
    return int.from_bytes(hashlib.sha256(f"{recipe_seed}/{stage}/{seed}".encode()).digest()[:4], "little")


def device() -> torch.device:
    """An accelerator where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    ws: Workspace, stage: str, method: Method, role: str, data: Batches, config: TrainConfig, directory: Path
) -> dict[str, float]:
    """Train under `directory`/train (resuming), save role's averaged weights to `directory`/model; returns last values.

    Raises KeyboardInterrupt after Ctrl-C or SIGTERM, once the trainer has saved.
    """
    config = replace(config, seed=stage_seed(ws.recipe.seed, stage, config.seed))
    columns = (TextColumn("  step"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    ending = (TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"))
    with Progress(*columns, *ending, disable=not dist.is_main()) as bar:
        task = bar.add_task("", total=config.steps, note="")

        def progress(step: int, steps: int, last: dict[str, float]) -> None:
            losses = "  ".join(f"{k} {v:.4g}" for k, v in last.items() if k.endswith("/loss"))
            bar.update(task, completed=step, total=steps, note=losses)

        def tell(finding: Finding) -> None:
            bar.console.print(f"  {finding}", style="yellow", markup=False, highlight=False)

        moving = tuple(getattr(method, "moving_roles", ()))
        health = Health(ws.recipe.health, directory / "train", moving_roles=moving, tell=tell)
        run_dir, layout = directory / "train", ws.recipe.layout
        trainer = Trainer(
            method, data, config, run_dir, device=device(), progress=progress, observers=[health], layout=layout,
            track=_tracking(ws, stage, method, config),
        )  # fmt: skip
        health.play = sampler(ws, stage, trainer, role)

        def line(text: str) -> None:
            bar.console.print(f"  {text}", markup=False, highlight=False)

        if (watch := validator(ws, stage, trainer, role, run_dir, line)) is not None:
            trainer.observers = (*trainer.observers, watch)
        result = trainer.fit()
        if result.finished:
            health.finish(result.step)
    if not result.finished:
        raise KeyboardInterrupt
    weights = trainer.trained_state(role)
    dist.on_main(lambda: _keep_both(ws, stage, method.roles[role], weights, result, directory))
    return result.last


def _tracking(
    ws: Workspace, stage: str, method: Method, config: TrainConfig
) -> Callable[[int], Sequence[Tracker]] | None:
    """What opens the trackers of a stage; None where none was asked for."""
    if not ws.track:
        return None
    facts = {"recipe": ws.recipe.name, "stage": stage, "method": type(method).__name__, **to_data(config)}
    folder, run = ws.run_dir / "track", f"{ws.run_dir.name}/{stage}"
    return lambda step: open_trackers(ws.track, folder, run, facts, resume_step=step)


def _keep_both(
    ws: Workspace, stage: str, model: nn.Module, weights: dict[str, Tensor], result: Result, directory: Path
) -> None:
    """Save the last weights and, where the stage was validated, the best: one as the stage's model, one beside it."""
    section, kept, measured = ws.recipe.validation(stage), read_best(directory / "train"), history(directory / "train")
    if section is None or kept is None or result.step not in measured:
        _keep(ws, stage, model, weights, result, directory)
        return
    best, what = kept
    seconds = round(sum(m.seconds for m in measured.values()), 1)
    last = {**what, "value": measured[result.step].figures[section.metric], "step": result.step}
    for name, state, said in (("last", weights, last), ("best", best, what)):
        taken = name == section.take
        card = {FOLDER: {**said, "weights": name, "measurements": len(measured), "seconds": seconds}}
        _keep(ws, stage, model, state, result, directory if taken else directory / name, card)


def _keep(
    ws: Workspace,
    stage: str,
    model: nn.Module,
    weights: dict[str, Tensor],
    result: Result,
    directory: Path,
    facts: dict[str, Any] | None = None,
) -> None:
    """Save what was trained as a model of its own; facts: further entries of its card."""
    assert isinstance(model, (Backbone, Codec)), "stages train registered models"
    if sharded(model):
        model = build_model(kind_of(model), asdict(model.config))
    model.load_state_dict(weights)
    if isinstance(model, LoRARole):
        model = merged(ws, stage, model, directory)
    losses = {k: v for k, v in result.last.items() if k.endswith("/loss")}
    said = card(ws, stage, steps=result.step, seconds=result.seconds, losses=losses)
    directory.mkdir(parents=True, exist_ok=True)
    save_model(model, directory / "model", said | (facts or {}))
