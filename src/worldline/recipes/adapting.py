"""Starting a recipe in the middle, from a world model that exists: what it is, what is mapped, which stages are still to do.

A source is a published checkpoint (HY-WorldPlay, minWM, Self-Forcing, ...), a model directory, a world, or a run directory.
Its weights become the recipe's base; stages before the starting one are dropped, and who named one of them is given the
source, the same stage of the source's run, or what the caller names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldline.models.convert import inspect
from worldline.models.convert.published import Maturity
from worldline.models.hunyuan15 import HunyuanConfig
from worldline.models.registry import BackboneConfig, variant
from worldline.recipes.builder import did_you_mean
from worldline.recipes.schema import MULTI_STEP_CAUSAL, Recipe, StageSection, is_directory
from worldline.recipes.source_model import AdaptError, KeyMap, Source, mapping, steered
from worldline.schema import TimeGrid


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What should differ. None: as the source, and where it has none, as the recipe."""

    stage: str | None = None  # the first stage to run
    maturity: Maturity | None = None  # of the source, where nothing tells it
    chunk: int | None = None
    steps: int | None = None
    camera: str | None = None
    motion: bool | None = None
    actions: int | None = None
    data: str | None = None
    teacher: str | None = None  # a multi-step causal model directory
    score: str | None = None  # a bidirectional one
    train_steps: int | None = None  # at most so many updates a stage


@dataclass(frozen=True)
class Adaptation:
    """What will be done: the recipe, the first stage, the mapping, and what was decided on the way, in words."""

    recipe: Recipe
    source: Source
    first: str
    mapping: KeyMap
    notes: tuple[str, ...] = ()


def target_config(source: BackboneConfig, recipe: Recipe, wishes: Wishes) -> BackboneConfig:
    """The source's sizes with the controls asked for: the source's own, or, where it takes none, the recipe's."""
    wanted = recipe.model.config()
    if type(wanted) is not type(source):
        raise AdaptError(
            f"recipe {recipe.name} is for a {type(wanted).__name__}, the checkpoint is a {type(source).__name__}; name a "
            f"recipe of its family (--recipe)"
        )
    parent: Any = source if steered(source) else wanted
    changes: dict[str, Any] = {
        "camera": wishes.camera or parent.camera,
        "motion": parent.motion if wishes.motion is None else wishes.motion,
        "actions": parent.actions if wishes.actions is None else wishes.actions,
        "camera_share": parent.camera_share,
    }
    if isinstance(wanted, HunyuanConfig):
        changes["text_mode"] = wanted.text_mode
    return replace(source, **changes)


def adapt(source: Source, recipe: Recipe, wishes: Wishes, converted: Path) -> Adaptation:
    """The recipe that goes on from `source`; its weights will be in `converted` where they are not in a model directory as
    they are (see `prepare`). Raises AdaptError."""
    maturity = wishes.maturity or source.maturity
    if maturity is None:
        raise AdaptError(
            f"{source.path}: nothing tells whether this {source.report.layout} model sees whole clips, or makes chunks in "
            "many steps or in few; say --kind bidirectional, causal or few-step"
        )
    if maturity != "bidirectional" and not source.ours and isinstance(source.config, HunyuanConfig):
        # Weights do not show it: causal models of this family read the prompt apart.
        config = replace(source.config, text_mode="decoupled")
        source = replace(source, report=replace(source.report, config=config))
    target = target_config(source.config, recipe, wishes)
    mapped, notes = mapping(source.config, target), list[str]()
    rollout = recipe.rollout
    if (world := source.world) is not None:
        seen = world.visibility
        rollout = replace(rollout, chunk=seen.chunk, window=seen.window, sink=seen.sink, prefix=seen.prefix)
        rollout = replace(rollout, steps=len(world.sigmas))
    rollout = replace(rollout, chunk=wishes.chunk or rollout.chunk, steps=wishes.steps or rollout.steps)
    if rollout.window is not None and rollout.window < 2 * rollout.chunk:
        rollout = replace(rollout, window=2 * rollout.chunk)
        notes.append(f"the window grows to {rollout.window} latents: a chunk of {rollout.chunk} and one before it")
    new_controls = bool(mapped.new or mapped.unlike)
    new_chunk = wishes.chunk is not None and (world is None or wishes.chunk != world.visibility.chunk)
    causal = [name for name, stage in recipe.stages.items() if stage.method in MULTI_STEP_CAUSAL]
    taught = any(_of_run(source, name, target) is not None for name in causal)
    teaches = wishes.teacher is not None or maturity == "causal" or taught
    first = wishes.stage or _first(recipe, maturity, new_controls, new_chunk, teaches)
    if first not in recipe.stages:
        raise AdaptError(
            f"--stage {first}: recipe {recipe.name} has no such stage; {did_you_mean(first, recipe.stages)}"
        )
    stages = _stages(recipe, source, wishes, maturity, first, target, notes)
    if new_chunk and wishes.teacher is None and not set(causal) & set(stages):
        notes.append(f"no stage learns chunks of {rollout.chunk} before the few-step ones: their teacher makes others")
    data = recipe.data if wishes.data is None else replace(recipe.data, path=wishes.data, video=None)
    stages, data = _fitted(stages, data, rollout.prefix, rollout.chunk, notes)
    for name, stage in stages.items():
        if stage.method == "ode":
            euler = -(-stage.options.euler_steps // rollout.steps) * rollout.steps  # anchors lie on the teacher's steps
            stage = replace(stage, options=replace(stage.options, steps=rollout.steps, euler_steps=euler))
        if wishes.train_steps is not None:
            steps = min(stage.train.steps, wishes.train_steps)
            stage = replace(stage, train=replace(stage.train, steps=steps, warmup=min(stage.train.warmup, steps // 2)))
        stages[name] = stage
    made = replace(
        recipe,
        name=f"{recipe.name}-adapted",
        about=f"{recipe.name} from {source.report.file} ({source.report.layout}), starting with {first}",
        base=replace(recipe.base, path=str(source.path if source.ready(mapped) else converted)),
        model=replace(recipe.model, camera=target.camera, changes=_changes(recipe.model.variant, target)),
        rollout=rollout,
        stages=stages,
        data=data,
    )
    return Adaptation(made, source, first, mapped, tuple(notes))


def _changes(name: str, config: BackboneConfig) -> dict[str, Any]:
    """The fields in which a config differs from a variant, its camera aside."""
    like, own = vars(variant(name)), vars(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in own.items() if k != "camera" and v != like[k]}


def _first(recipe: Recipe, maturity: Maturity, new_controls: bool, new_chunk: bool, teaches: bool) -> str:
    """The first stage whose lesson the source has not learnt."""
    if new_controls:
        wanted: tuple[str, ...] = ("finetune",)
    elif maturity == "bidirectional" or new_chunk or (maturity == "few-step" and not teaches):
        wanted = MULTI_STEP_CAUSAL
    else:
        wanted = ("ode", "consistency", "dmd")
    found = next((name for name, stage in recipe.stages.items() if stage.method in wanted), None)
    if found is None:
        raise AdaptError(
            f"recipe {recipe.name} has no {' or '.join(wanted)} stage, which a {maturity} source needs first here; say --stage "
            f"(of {', '.join(recipe.stages)}), or another --recipe"
        )
    return found


def _stages(
    recipe: Recipe,
    source: Source,
    wishes: Wishes,
    maturity: Maturity,
    first: str,
    target: BackboneConfig,
    notes: list[str],
) -> dict[str, StageSection]:
    """The stages from `first` on. Who named an earlier one is given what stands for it; a stage that cannot be had so is left
    out, or refused where it is the one asked for."""
    names = list(recipe.stages)
    gone = set(names[: names.index(first)]) | {"base"}
    stands = {"base": "base", **dict.fromkeys(gone, "base")}
    kept: dict[str, StageSection] = {}
    for name in names[names.index(first) :]:
        stage, lacks = recipe.stages[name], ""
        changes: dict[str, Any] = {"init": stands.get(stage.init, stage.init)}
        for role, named in stage.roles().items():
            if role != "init" and named in gone:
                found = _stand_in(role, named, source, wishes, maturity, target)
                lacks = lacks or ("" if found is not None else role)
                changes[role] = found or named
        if lacks:
            need = "a multi-step causal model (--teacher)" if lacks == "teacher" else "a bidirectional model (--score)"
            if name == wishes.stage:
                raise AdaptError(f"--stage {name}: its `{lacks}` must be {need} that takes the same controls; name one")
            notes.append(f"{name} is left out: its `{lacks}` would be {need} that takes the same controls")
            gone.add(name)
            stands[name] = changes["init"]
            continue
        kept[name] = replace(stage, **changes)
    if not kept:
        raise AdaptError(f"recipe {recipe.name}: no stage from {first} on can be run; name --teacher or --score")
    return kept


def _stand_in(
    role: str, named: str, source: Source, wishes: Wishes, maturity: Maturity, target: BackboneConfig
) -> str | None:
    """Who takes the part of a stage that is not run: what the caller names, that stage of the source's run, the source."""
    asked = wishes.teacher if role == "teacher" else wishes.score
    if asked is not None:
        return asked if is_directory(asked) else f"./{asked}"
    if (model := _of_run(source, named, target)) is not None:
        return model
    right: Maturity = "causal" if role == "teacher" else "bidirectional"
    return "base" if maturity == right and source.config == target else None


def _of_run(source: Source, stage: str, target: BackboneConfig) -> str | None:
    """The model of a stage of the source's run, where there is one that takes the same controls."""
    model = None if source.run is None else source.run / stage / "model"
    if model is None or not (model / "config.json").is_file() or inspect(model).config != target:
        return None
    return str(model)


def _fitted(
    stages: dict[str, StageSection], data: Any, prefix: int, chunk: int, notes: list[str]
) -> tuple[dict[str, StageSection], Any]:
    """Clips cut so that they divide into chunks."""
    frames = _frames(data)
    latents = data.latents or (None if frames is None else TimeGrid().latent_frames(frames))

    def fit(count: int, whose: str) -> int:
        whole = prefix + (count - prefix) // chunk * chunk
        if whole < prefix + chunk:
            raise AdaptError(
                f"{whose}: {count} latents hold no chunk of {chunk} behind {prefix} given; take longer clips"
            )
        if whole != count:
            notes.append(f"{whose} trains on {whole} of {count} latents: {prefix} given, then chunks of {chunk}")
        return whole

    if latents is not None and (whole := fit(latents, "every stage")) != latents:
        data = replace(data, latents=whole)
    return {
        name: stage if stage.latents is None else replace(stage, latents=fit(stage.latents, f"stage {name}"))
        for name, stage in stages.items()
    }, data


def _frames(data: Any) -> int | None:
    """Pixel frames of a clip; None where the dataset does not say."""
    if data.path is None:
        return int(data.build.frames)
    if data.video is not None:
        return int(data.video.frames)
    info = Path(data.path) / "dataset.json"
    said = json.loads(info.read_text()) if info.is_file() else {}
    found = said.get("frames", said.get("config", {}).get("frames"))
    return int(found) if isinstance(found, int) else None


def described(made: Adaptation) -> dict[str, str]:
    """What was recognised and what will be done, as rows of a table."""
    source, report, mapped = made.source, made.source.report, made.mapping
    config = report.config
    controls = [config.camera != "none" and f"camera {config.camera}", config.motion and "motion",
                config.actions and f"{config.actions} actions"]  # fmt: skip
    roles = ", ".join(f"{n} {role}" for role, n in report.roles.items())
    return {
        "checkpoint": f"{report.file}: {report.layout}, {report.family} {report.variant or '(no published size)'}",
        "kind": source.maturity or "as told",
        "controls": ", ".join(str(c) for c in controls if c) or "none",
        "weights": f"{report.chosen or 'the only set'}, {report.tensors} tensors ({roles}), "
        f"{report.parameters / 1e6:,.1f} M parameters",
        "kept": f"{mapped.kept} tensors",
        "new": f"{len(mapped.new)} tensors, silent at the start ({_some(mapped.new)})" if mapped.new else "none",
        "dropped": f"{len(mapped.dropped)} tensors ({_some(mapped.dropped)})" if mapped.dropped else "none",
        "starts as": f"another function: {mapped.unlike}" if mapped.unlike else "the source: the same outputs",
        "licence": report.licence,
        "stages": ", ".join(made.recipe.stages),
        "rollout": f"chunks of {made.recipe.rollout.chunk} latents in {made.recipe.rollout.steps} steps",
    }


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
