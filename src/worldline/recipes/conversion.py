"""Work of the model stages: which networks a method takes, and on what it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from worldline.data.loader import LatentDataset
from worldline.methods.base import Method
from worldline.models.wan import WanModel
from worldline.recipes.schema import StageSection
from worldline.recipes.training import device, stage_seed, train
from worldline.recipes.workspace import Workspace
from worldline.schema import TextEmbedding, WorldlineError


def empty_prompt(ws: Workspace) -> TextEmbedding:
    """The unconditional prompt [1, L, D]."""
    return ws.text_encoder().encode([""]).to(device())


def latents(ws: Workspace) -> LatentDataset:
    """The encoded training clips. Raises WorldlineError where they were made for another backbone or do not chunk."""
    found = LatentDataset(ws.run_dir / "encode" / "latents", "train")
    if found.fingerprint != ws.text_encoder().fingerprint:
        raise WorldlineError(f"clips have prompts by {found.fingerprint}, the model takes {ws.text_encoder().fingerprint}")
    T, rollout = found.latents.shape[1], ws.recipe.rollout
    if (T - rollout.prefix) % rollout.chunk:
        near = rollout.prefix + (T - rollout.prefix) // rollout.chunk * rollout.chunk
        raise WorldlineError(
            f"clips of {T} latents do not divide into a prefix of {rollout.prefix} and chunks of {rollout.chunk}; "
            f"render clips of {near} latents (data.build.frames)"
        )
    return found


def base(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `base`: pretraining from scratch, without cameras."""
    import torch

    section = ws.recipe.base
    torch.manual_seed(stage_seed(ws.recipe.seed, "base weights", section.train.seed))
    model = WanModel(ws.recipe.model.config("none"))
    method = replace(section.options, use_cameras=False).build(model, empty_prompt(ws))
    return train(ws, "base", method, "model", latents(ws), section.train, directory)


def stage(ws: Workspace, name: str, directory: Path) -> dict[str, float]:
    """A conversion stage: build its method, train, save the model."""
    import torch

    section = ws.recipe.stages[name]
    # Weights a stage adds (silent ones aside) are drawn here.
    torch.manual_seed(stage_seed(ws.recipe.seed, f"{name} weights", section.train.seed))
    method, role = BUILDERS[section.method](ws, section, directory)
    return train(ws, name, method, role, latents(ws), section.train, directory)


def _finetune(ws: Workspace, section: StageSection, directory: Path) -> tuple[Method, str]:
    return section.options.build(ws.model(section.init), empty_prompt(ws)), "model"


def _teacher_forcing(ws: Workspace, section: StageSection, directory: Path) -> tuple[Method, str]:
    return section.options.build(ws.model(section.init), ws.recipe.rollout.visibility(), empty_prompt(ws)), "model"


BUILDERS: dict[str, Callable[[Workspace, StageSection, Path], tuple[Method, str]]] = {
    "finetune": _finetune,
    "teacher_forcing": _teacher_forcing,
}
