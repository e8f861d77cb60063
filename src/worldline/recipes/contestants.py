"""The stages of a run as the stage table plays them: which weights, how many steps, how long a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from worldline.evaluate.player import Player
from worldline.evaluate.stages import Contestant, Setting
from worldline.models.registry import load_model, weights_hash
from worldline.nn.precision import inference_dtype
from worldline.recipes.measuring import clip_latents, player
from worldline.recipes.schema import MULTI_STEP_CAUSAL, StageSection
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RAW_STEPS, RolloutPlan
from worldline.schema import WorldlineError

WORLD = "world"  # the exported world: its own plan


@dataclass(frozen=True)
class Asked:
    """One name of `--stages`: a stage, and the steps it is asked in where they were said."""

    stage: str
    steps: int | None = None


def parsed(names: str) -> list[Asked]:
    """`base,ar,dmd@2` -> what is asked for. Raises WorldlineError on a name that is none."""
    out = []
    for name in (n.strip() for n in names.split(",") if n.strip()):
        stage, _, steps = name.partition("@")
        if not stage or (steps and not steps.isdigit()):
            raise WorldlineError(f"stage {name!r}; expected a name, or a name and its steps such as dmd@2")
        out.append(Asked(stage, int(steps) if steps else None))
    return out


def default_stages(ws: Workspace) -> list[Asked]:
    """Base and every stage of the recipe that is there, and the exported world."""
    there = [s for s in ("base", *ws.recipe.stages) if (ws.model_dir(s) / "model.safetensors").is_file()]
    return [Asked(s) for s in there] + ([Asked(WORLD)] if (ws.run_dir / WORLD / "world.json").is_file() else [])


def teacher_of(ws: Workspace, asked: list[Asked]) -> str:
    """The label of the last causal multi-step stage among them: what few steps are to keep. Raises WorldlineError where
    there is none."""
    names = [a.stage for a in asked if a.steps is None and _method(ws, a.stage) in MULTI_STEP_CAUSAL]
    if not names:
        raise WorldlineError(
            f"{[a.stage for a in asked]} have no causal multi-step stage to be compared with; name one, such as ar"
        )
    return names[-1]


def contestants(ws: Workspace, asked: list[Asked], few_steps: tuple[int, ...], device: str = "cpu") -> list[Contestant]:
    """A row for every stage; a few-step stage without steps of its own has one for each of `few_steps`. Raises WorldlineError
    on an unknown stage or one that the run has not made."""
    out = []
    for a in asked:
        if a.stage == WORLD:
            out.append(_world(ws, device))
        elif a.steps is not None or ws.few_step(a.stage):
            out += [_few(ws, a.stage, n, device) for n in ([a.steps] if a.steps is not None else few_steps)]
        else:
            out.append(_many(ws, a.stage, device))
    return out


def setting(ws: Workspace) -> Setting:
    """Picture size and walking speed of the run's clips."""
    clips = ws.clips()
    config = clips.info["config"]
    return Setting(int(config["height"]), int(config["width"]), float(clips.info["walk_units_per_frame"]))


def _method(ws: Workspace, stage: str) -> str:
    if stage == "base":
        return "base"
    return ws.recipe.stages[stage].method if stage in ws.recipe.stages else ""


def _model_dir(ws: Workspace, stage: str) -> Path:
    known = ["base", *ws.recipe.stages, WORLD]
    if stage not in known:
        raise WorldlineError(f"stage {stage!r}; expected some of {', '.join(known)}")
    folder = ws.model_dir(stage)
    if not (folder / "model.safetensors").is_file():
        raise WorldlineError(
            f"{folder} has no weights; run the stage first (worldline run {ws.run_dir} --until {stage})"
        )
    return folder


def _many(ws: Workspace, stage: str, device: str) -> Contestant:
    """A stage as its recipe samples it: a whole clip, or chunk by chunk; many steps, with guidance."""
    weights, rollout = weights_hash(_model_dir(ws, stage)), ws.recipe.rollout
    section = ws.recipe.base if stage == "base" else ws.recipe.stages[stage]
    bidirectional = not isinstance(section, StageSection) or section.method == "finetune"
    stride = ws.codec().grid.stride
    clip = stride * (clip_latents(ws, section) - 1) if bidirectional else 0
    about = f"{'whole clips, ' if bidirectional else ''}{rollout.multi_steps} steps, guidance {rollout.guidance:g}"
    rows = stride if bidirectional else stride * rollout.chunk
    make = partial(_ready, partial(player, ws, stage), device)
    return Contestant(
        label=stage, stage=stage, about=about, weights=_stamp(ws, weights, about), player=make, rows=rows, clip=clip
    )


def _few(ws: Workspace, stage: str, steps: int, device: str) -> Contestant:
    """A causal stage asked in a few steps, without guidance."""
    if steps not in RAW_STEPS:
        raise WorldlineError(f"{stage}@{steps}: expected one of {sorted(RAW_STEPS)} steps")
    if _method(ws, stage) in ("", "base", "finetune"):
        raise WorldlineError(f"{stage}@{steps}: only causal stages can be asked in few steps; expected {stage} alone")
    weights, rollout = weights_hash(_model_dir(ws, stage)), ws.recipe.rollout
    plan = RolloutPlan.few_step(rollout.visibility(), steps, history=rollout.memory())

    def made() -> Player:
        return replace(player(ws, stage), plan=plan)

    about, rows = f"{steps} steps", ws.codec().grid.stride * rollout.chunk
    return Contestant(
        label=f"{stage}@{steps}", stage=stage, about=about, weights=_stamp(ws, weights, about),
        player=partial(_ready, made, device), rows=rows,
    )  # fmt: skip


def _world(ws: Workspace, device: str) -> Contestant:
    """The exported world of the run, as it is streamed."""
    from worldline.stream.text import world_image_encoder, world_text_encoder
    from worldline.stream.world import WorldConfig

    folder = ws.run_dir / WORLD
    if not (folder / "world.json").is_file():
        raise WorldlineError(f"{folder} has no world; run the recipe to its end first (worldline run {ws.run_dir})")
    config = WorldConfig.read(folder)

    def made() -> Player:
        model, codec = load_model(folder), load_model(folder / config.codec)
        text = world_text_encoder(folder, config.text, model.config)
        images = world_image_encoder(folder, config.text, model.config)
        return Player(model, codec, text, config.plan, config.move_scale, images=images)

    about = f"{len(config.sigmas)} steps"
    rows = ws.codec().grid.stride * config.visibility.chunk
    weights = _stamp(ws, weights_hash(folder), about)
    return Contestant(
        label=WORLD, stage=WORLD, about=about, weights=weights, player=partial(_ready, made, device), rows=rows
    )


def _stamp(ws: Workspace, weights: str, about: str) -> str:
    """12 hex digits of weights, codec and sampling: what decides the frames."""
    rollout = ws.recipe.rollout
    seen = f"{rollout.chunk}/{rollout.window}/{rollout.sink}/{rollout.prefix}/{rollout.history or ''}"
    said = f"{weights}/{weights_hash(ws.part('codec'))}/{seen}/{about}"
    return f"{weights}-{hashlib.sha256(said.encode()).hexdigest()[:6]}"


def _ready(make: Callable[[], Player], device: str) -> Player:
    """A player on its device, its weights laid out and cast once, as the engine streams them."""
    played, dtype = make(), inference_dtype(device)
    model, codec = (m.to(device).freeze(dtype) for m in (played.model, played.codec))
    return replace(played, model=model, codec=codec, bf16=dtype == torch.bfloat16)
