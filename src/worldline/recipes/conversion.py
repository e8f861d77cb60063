"""Work of the model stages: which networks a method takes, and on what it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from worldline.data.loader import LatentDataset
from worldline.methods.base import Method
from worldline.methods.ode import OdeTrajectories, generate_trajectories
from worldline.models.registry import build_backbone
from worldline.recipes.assets import located
from worldline.recipes.networks import networks
from worldline.recipes.schema import BaseSection, StageSection
from worldline.recipes.sources import bar
from worldline.recipes.training import device, stage_seed, train
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RolloutPlan
from worldline.schema import TextEmbedding, WorldlineError
from worldline.train.loop import Batches


def empty_prompt(ws: Workspace) -> TextEmbedding:
    """The unconditional prompt [1, L, D]."""
    return ws.text_encoder().encode([""]).to(device())


def latents(ws: Workspace, section: BaseSection | StageSection | None = None) -> LatentDataset:
    """The encoded training clips, as long as a stage wants them. Raises WorldlineError where they were made for another
    backbone or do not chunk."""
    frames = None if section is None else section.latents
    found = LatentDataset(
        ws.run_dir / "encode" / "latents",
        "train",
        latents=frames or ws.recipe.data.latents,
        pose_noise=ws.recipe.data.pose_noise,
    )
    if found.fingerprint != ws.text_encoder().fingerprint:
        raise WorldlineError(
            f"clips have prompts by {found.fingerprint}, the model takes {ws.text_encoder().fingerprint}"
        )
    T, rollout = found.latents.shape[1], ws.recipe.rollout
    if (T - rollout.prefix) % rollout.chunk:
        near = rollout.prefix + (T - rollout.prefix) // rollout.chunk * rollout.chunk
        raise WorldlineError(
            f"clips of {T} latents do not divide into a prefix of {rollout.prefix} and chunks of {rollout.chunk}; "
            f"render clips of {near} latents (data.build.frames)"
        )
    return found


def base(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `base`: pretraining without cameras, from scratch or from the weights of `base.init`."""
    section = ws.recipe.base
    torch.manual_seed(stage_seed(ws.recipe.seed, "base weights", section.train.seed))
    config = ws.recipe.model.config("none")
    model = build_backbone(config) if section.init is None else ws.weights(located(section.init, "base"), config)
    method = replace(section.options, use_cameras=False).build(model, empty_prompt(ws))
    return train(ws, "base", method, "model", latents(ws, section), section.train, directory)


def stage(ws: Workspace, name: str, directory: Path) -> dict[str, float]:
    """A conversion stage: build its method, train, save the model."""
    section = ws.recipe.stages[name]
    # Weights that a stage adds are drawn here (those of a camera branch start silent).
    torch.manual_seed(stage_seed(ws.recipe.seed, f"{name} weights", section.train.seed))
    built = BUILDERS[section.method](ws, section, name, directory)
    return train(ws, name, built.method, built.role, built.data, section.train, directory)


@dataclass(frozen=True)
class Built:
    """A method ready to train: the role whose weights the stage leaves, and what it trains on."""

    method: Method
    role: str
    data: Batches


def _finetune(ws: Workspace, section: StageSection, name: str, directory: Path) -> Built:
    model = networks(ws, section)["model"]
    return Built(section.options.build(model, empty_prompt(ws)), "model", latents(ws, section))


def _causal(ws: Workspace, section: StageSection, name: str, directory: Path) -> Built:
    model, rollout = networks(ws, section)["model"], ws.recipe.rollout
    recalled = {"history": rollout.memory()} if section.method == "teacher_forcing" else {}
    method = section.options.build(model, rollout.visibility(), empty_prompt(ws), **recalled)
    return Built(method, "model", latents(ws, section))


def _ode(ws: Workspace, section: StageSection, name: str, directory: Path) -> Built:
    clips, visibility = latents(ws, section), ws.recipe.rollout.visibility()
    nets = networks(ws, section)
    teacher = nets.pop("teacher")

    with bar("trajectories") as shown:
        task = shown.add_task("", total=None, note="")
        generate_trajectories(
            teacher.to(device()),
            clips,
            empty_prompt(ws),
            visibility,
            section.options,
            directory / "trajectories",
            seed=stage_seed(ws.recipe.seed, f"{name} trajectories", section.train.seed),
            autocast=section.train.precision == "bf16",
            progress=lambda done, total: shown.update(task, completed=done, total=total),
        )
    data = OdeTrajectories(directory / "trajectories", clips)
    return Built(section.options.build(nets["model"], visibility), "model", data)


def _consistency(ws: Workspace, section: StageSection, name: str, directory: Path) -> Built:
    nets = networks(ws, section)
    method = section.options.build(nets["model"], nets["teacher"], ws.recipe.rollout.visibility(), empty_prompt(ws))
    return Built(method, "model", latents(ws, section))


def _dmd(ws: Workspace, section: StageSection, name: str, directory: Path) -> Built:
    rollout, nets = ws.recipe.rollout, networks(ws, section)
    plan = RolloutPlan.few_step(rollout.visibility(), rollout.steps, history=rollout.memory())
    method = section.options.build(nets["generator"], nets["real"], nets["fake"], plan, empty_prompt(ws))
    return Built(method, "generator", latents(ws, section))


BUILDERS: dict[str, Callable[[Workspace, StageSection, str, Path], Built]] = {
    "finetune": _finetune,
    "teacher_forcing": _causal,
    "diffusion_forcing": _causal,
    "ode": _ode,
    "consistency": _consistency,
    "dmd": _dmd,
}
