"""A recipe as stages, and `run`: data, codec, encode, base, the conversion, world, evaluate, report."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from worldline import dist
from worldline.data.encode import FORMAT
from worldline.models.registry import weights_hash
from worldline.recipes import codec, conversion, measuring, results, sources
from worldline.recipes.builder import RecipeError, to_data
from worldline.recipes.graph import Interrupted, Node, Progress, execute, select
from worldline.recipes.load import save_recipe
from worldline.recipes.schema import MULTI_STEP_CAUSAL, Recipe, is_directory
from worldline.recipes.store import StageRecord, StageStore
from worldline.recipes.teachers import described, fingerprint
from worldline.recipes.training import decisive
from worldline.recipes.workspace import Workspace
from worldline.stream.world import check_streamable


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: the records of its stages, flat figures, and where to look."""

    records: list[StageRecord]
    metrics: dict[str, Any]
    world: Path
    report: Path | None


def plan(recipe: Recipe, run_dir: Path, track: tuple[str, ...] = ()) -> list[Node]:
    """The stages of a recipe, in order, with what decides each one's result; track: see `run`."""
    ws = Workspace(recipe, run_dir, track)
    return [*_sources(recipe, ws), *_conversion(recipe, ws), *_results(recipe, ws)]


def _sources(recipe: Recipe, ws: Workspace) -> list[Node]:
    """Data, codec, latents, base: rendered and trained here, or taken from elsewhere."""
    nodes = []
    from_data, from_codec = ws.internal("data"), ws.internal("codec")
    if recipe.data.path is None:
        build = recipe.data.build
        nodes.append(Node("data", to_data(build), (), partial(sources.data, ws), family=build.fingerprint()))
    if recipe.codec.path is None:
        nodes.append(
            Node(
                "codec",
                _seeded(recipe, recipe.codec),
                from_data,
                partial(codec.codec, ws),
                external={**ws.external("data"), **ws.initial("codec")},
                together=True,
            )
        )
    nodes.append(
        Node(
            "encode",
            {"text": ws.text_encoder().fingerprint, "format": FORMAT, **_images(ws)},
            (*from_data, *from_codec),
            partial(sources.encode, ws),
            external=ws.external("data", "codec"),
        )
    )
    if recipe.stages and recipe.evaluate.every_stage:
        nodes.append(_episodes(recipe, ws))
    if recipe.base.path is None:
        config = {
            **_seeded(recipe, recipe.base),
            "latents": recipe.base.latents or recipe.data.latents,
            "model": to_data(recipe.model.config("none")),
        }
        work = partial(conversion.base, ws)
        nodes.append(Node("base", config, ("encode",), work, external=ws.initial("base"), together=True))
    return nodes


def _images(ws: Workspace) -> dict[str, str]:
    """Who reads the start images; nothing where nobody does, as before there was anybody."""
    images = ws.image_encoder()
    return {} if images is None else {"images": images.fingerprint}


def _conversion(recipe: Recipe, ws: Workspace) -> list[Node]:
    """The model stages, each followed by its evaluation."""
    measured = recipe.evaluate.every_stage and recipe.stages and ws.plain_base()
    nodes = [_evaluation(recipe, ws, "base")] if measured else []
    for name, stage in recipe.stages.items():
        named = tuple(dict.fromkeys(stage.roles().values()))
        sources, elsewhere = [s for s in named if not is_directory(s)], [s for s in named if is_directory(s)]
        inputs = ("encode", *(s for s in sources if s != "base"), *(ws.internal("base") if "base" in sources else ()))
        config = {
            **_seeded(recipe, stage),
            "latents": stage.latents or recipe.data.latents,
            "model": to_data(recipe.model.config()),
        }
        # Added since runs were finished: what changes no weights is left out, as those runs had it.
        del config["validate"]
        if (watched := recipe.validation(name)) is not None and watched.take == "best":
            config["validate"] = {
                **to_data(watched),
                "frames": [recipe.evaluate.spin_frames, recipe.evaluate.walk_frames],
            }
        if recipe.data.pose_noise is not None and not recipe.data.pose_noise.none:
            config["pose_noise"] = to_data(recipe.data.pose_noise)
        if stage.method != "finetune":
            config["rollout"] = _rollout(recipe)
        external = {
            **(ws.external("base") if "base" in sources else {}),
            **{directory: weights_hash(ws.model_dir(directory)) for directory in elsewhere},
            **{f"diffusers {role}": fingerprint(stage.foreign()[role].diffusers) for role in described(recipe, stage)},
        }
        nodes.append(Node(name, config, inputs, partial(conversion.stage, ws, name), external=external, together=True))
        if recipe.evaluate.every_stage:
            nodes.append(_evaluation(recipe, ws, name))
    return nodes


def _evaluation(recipe: Recipe, ws: Workspace, name: str) -> Node:
    made_here = name in recipe.stages or ws.internal("base") != ()
    own, parts = ((name,) if made_here else ()), ws.internal("data", "codec")
    config = {"rollout": _rollout(recipe), "latents": recipe.data.latents}
    return Node(
        f"{name}-evaluation",
        config,
        (*own, "episodes", *parts),
        partial(measuring.evaluate_stage, ws, name),
        external=ws.external("data", "codec", *(() if made_here else ("base",))),
        of=name if made_here else "episodes",
        may_fail=True,
    )


def _results(recipe: Recipe, ws: Workspace) -> list[Node]:
    """The exported world, its figures, the report."""
    report = Node("report", {}, ("encode",), partial(results.report, ws), always=True)
    if ws.last is None:
        return [report]
    parts, external = ws.internal("data", "codec"), ws.external("data", "codec")
    rollout = _rollout(recipe)
    # First-frame latency is of the first bidirectional, the first causal and the last model.
    compared = tuple(dict.fromkeys(s for s in (ws.first("finetune"), ws.first(*MULTI_STEP_CAUSAL), ws.last) if s))
    reference = ws.bundled_world()
    bundled = {} if reference is None else {"bundled world": weights_hash(reference)}
    made = Node(
        "world",
        {"world": to_data(recipe.world), "rollout": rollout},
        (ws.last, *parts),
        partial(results.world, ws),
        external=external,
    )
    if recipe.evaluate.episodes == 0:
        return [made, report]
    figures = Node(
        "evaluate",
        {
            "latency": [recipe.evaluate.latency, recipe.evaluate.latency_steps],
            "rollout": rollout,
            "latents": recipe.data.latents,
        },
        (*compared, "episodes", *parts),
        partial(measuring.evaluate, ws),
        external={**external, **bundled},
    )
    return [made, *([] if recipe.evaluate.every_stage else [_episodes(recipe, ws)]), figures, report]


def _seeded(recipe: Recipe, section: Any) -> dict[str, Any]:
    """A section as what decides its result: with the recipe's seed, without settings that only watch or keep."""
    data, options = to_data(section), section.options
    late = {f.name for f in fields(options) if f.metadata.get("added") and getattr(options, f.name) == f.default}
    data["options"] = {k: v for k, v in data["options"].items() if k not in late}
    return {"seed": recipe.seed, **data, "train": decisive(section.train)}


def _rollout(recipe: Recipe) -> dict[str, Any]:
    """The rollout section, as runs had it before there was a memory where there is none."""
    data: dict[str, Any] = to_data(recipe.rollout)
    return {k: v for k, v in data.items() if k != "history" or v is not None}


def _episodes(recipe: Recipe, ws: Workspace) -> Node:
    wanted = recipe.evaluate
    config = {"count": wanted.episodes, "seed": wanted.seed, "spin": wanted.spin_frames, "walk": wanted.walk_frames}
    return Node("episodes", config, (), partial(measuring.episodes, ws))


def run(
    recipe: Recipe,
    run_dir: Path,
    *,
    from_: str | None = None,
    until: str | None = None,
    fork: Path | None = None,
    progress: Progress | None = None,
    track: tuple[str, ...] = (),
) -> RunResult:
    """Run a recipe's stages in order under `run_dir`; finished ones with the same content hash are skipped.

    from_, until: the first stage to redo and the last to run; fork: another run whose equal stages are taken over; track:
    trackers (`worldline.track`) that training logs to, under `run_dir`/track.
    Raises RecipeError before anything runs where the recipe does not fit, Interrupted on Ctrl-C, StageError.
    """
    if fork is not None and not (fork / "recipe.yaml").is_file():
        raise RecipeError(f"--fork {fork}: no recipe.yaml there; expected the directory of another run")
    nodes = plan(recipe, run_dir, track)
    if "world" in select(nodes, from_, until)[1]:
        check_streamable(recipe.rollout.visibility())
    dist.on_main(lambda: save_recipe(recipe, run_dir / "recipe.yaml"))
    try:
        records = execute(
            nodes,
            StageStore(run_dir),
            from_=from_,
            until=until,
            fork=None if fork is None else StageStore(fork),
            progress=progress,
        )
    except Interrupted as stop:
        raise Interrupted(stop.stage, f"everything finished is kept; go on with: worldline run {run_dir}") from stop
    report = run_dir / "report" / "index.html"
    return RunResult(
        records, measuring.read_metrics(run_dir / "evaluate"), run_dir / "world", report if report.is_file() else None
    )
