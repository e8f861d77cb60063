"""Work of the evaluations: held-out episodes, every model stage on them, and the run's figures at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldline.functional.masks import Visibility
from worldline.models.backbone import Backbone
from worldline.models.registry import load_model
from worldline.nn.precision import inference_dtype
from worldline.recipes.schema import MULTI_STEP_CAUSAL, BaseSection, StageSection
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RolloutPlan

if TYPE_CHECKING:
    from worldline.evaluate.episodes import Episode
    from worldline.evaluate.player import Player
    from worldline.evaluate.suite import Evaluation

# What a demo's figures hold of an evaluation, under `run_` and `bundled_`.
HEADLINE = ("yaw_corr", "yaw_gain", "yaw_lag_frames", "psnr_1s", "psnr_1s_frozen", "psnr_1s_wrong_actions")


def episodes(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `episodes`: render what the simulator shows on maps that no training set may use."""
    return {"episodes": float(len(_episodes(ws, directory)))}


def _episodes(ws: Workspace, directory: Path) -> list[Episode]:
    from worldline.evaluate.episodes import build_episodes

    wanted = ws.recipe.evaluate
    frames = {"spin_frames": wanted.spin_frames, "walk_frames": wanted.walk_frames}
    return build_episodes(directory, wanted.episodes, wanted.seed, **frames)


def player(ws: Workspace, stage: str, model: Backbone | None = None) -> Player:
    """A stage's model as it is to be played: whole clips in many steps, chunks in many, or chunks in few. model: the
    network itself where it is not on disk yet."""
    from worldline.evaluate.player import Player

    rollout = ws.recipe.rollout
    section = ws.recipe.base if stage == "base" else ws.recipe.stages[stage]
    method = section.method if isinstance(section, StageSection) else "base"
    model = model or ws.model(stage, "none" if stage == "base" else None)
    visibility, whole_clip, memory = rollout.visibility(), None, rollout.memory()
    if method in ("base", "finetune"):
        visibility = Visibility(bidirectional=True, prefix=rollout.prefix)
        whole_clip, memory = clip_latents(ws, section), None
    if not ws.few_step(stage):
        plan = RolloutPlan.multi_step(visibility, rollout.multi_steps, rollout.guidance, history=memory)
    else:
        plan = RolloutPlan.few_step(visibility, rollout.steps, history=memory)
    text, images = ws.text_encoder(), ws.image_encoder()
    return Player(model, ws.codec(), text, plan, ws.clips().move_scale, whole_clip, images=images)


def clip_latents(ws: Workspace, section: BaseSection | StageSection) -> int:
    """Latent frames of a clip that a stage was trained on."""
    frames = int(ws.clips().info["config"]["frames"])
    return section.latents or ws.recipe.data.latents or ws.codec().grid.latent_frames(frames)


def evaluate_stage(ws: Workspace, stage: str, directory: Path) -> dict[str, float]:
    """Control response and fidelity of one stage."""
    from worldline.evaluate.suite import evaluate_player

    found = evaluate_player(player(ws, stage), _episodes(ws, ws.run_dir / "episodes"), ws.recipe.evaluate.seed)
    save_evaluation(found, directory)
    return headline(found.metrics)


def headline(metrics: dict[str, float]) -> dict[str, float]:
    """The figures that stages are compared by, those that could be had."""
    return {key: metrics[key] for key in HEADLINE if key in metrics}


def save_evaluation(found: Evaluation, directory: Path) -> None:
    """metrics.json, and what the report draws: films and responses."""
    arrays = {f"film_{i:02d}": frames for i, (_, frames) in enumerate(found.films)}
    arrays |= {f"command_{i:02d}": track for i, track in enumerate(found.commands)}
    arrays |= {f"response_{i:02d}": track for i, track in enumerate(found.responses)}
    arrays |= {f"curve_{name}": curve for name, curve in found.curves.items()}
    np.savez_compressed(directory / "films.npz", allow_pickle=False, **arrays)
    (directory / "labels.json").write_text(json.dumps([label for label, _ in found.films]) + "\n")
    write_metrics(directory, found.metrics)


def read_evaluation(directory: Path) -> Evaluation | None:
    """What save_evaluation wrote; None where it was not made."""
    from worldline.evaluate.suite import Evaluation

    metrics = read_metrics(directory)
    if not metrics:
        return None
    arrays = np.load(directory / "films.npz")
    tracks = {kind: [arrays[k] for k in sorted(arrays.files) if k.startswith(kind)] for kind in ("command", "response")}
    labels = json.loads((directory / "labels.json").read_text())
    films = [(label, arrays[f"film_{i:02d}"]) for i, label in enumerate(labels)]
    curves = {k.removeprefix("curve_"): arrays[k] for k in arrays.files if k.startswith("curve_")}
    return Evaluation(metrics, films, tracks["command"], tracks["response"], curves)


def write_metrics(directory: Path, metrics: dict[str, Any]) -> None:
    """Flat figures, last of what an evaluation writes."""
    (directory / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def read_metrics(directory: Path) -> dict[str, Any]:
    """The flat figures an evaluation wrote; none where it has not run."""
    path = directory / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def evaluate(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `evaluate`: the run's world, the bundled world, and how long each kind of model takes to a first frame."""
    metrics: dict[str, Any] = {}
    last = ws.last
    assert last is not None, "figures are planned only where there are stages"
    if not read_metrics(ws.run_dir / f"{last}-evaluation"):
        evaluate_stage(ws, last, directory)
    own = read_metrics(ws.run_dir / f"{last}-evaluation") or read_metrics(directory)
    metrics |= {f"run_{key}": value for key, value in headline(own).items()}
    metrics |= {f"bundled_{key}": value for key, value in _bundled(ws, directory).items()}
    if ws.recipe.evaluate.latency:
        metrics |= _latency(ws)
    write_metrics(directory, metrics)
    return {key: value for key, value in metrics.items() if isinstance(value, float)}


def _bundled(ws: Workspace, directory: Path) -> dict[str, float]:
    """The bundled world on the same episodes; nothing where the package has none, or one of another size."""
    from worldline.evaluate.player import Player
    from worldline.evaluate.suite import evaluate_player
    from worldline.stream.text import world_text_encoder
    from worldline.stream.world import WorldConfig

    where = ws.bundled_world()
    if where is None:
        return {}
    config = WorldConfig.read(where)
    held_out = _episodes(ws, ws.run_dir / "episodes")
    if held_out[0].frames.shape[1:3] != (config.height, config.width):
        return {}
    model, codec = load_model(where), load_model(where / config.codec)
    text = world_text_encoder(where, config.text, model.config)
    played = Player(model, codec, text, config.plan, config.move_scale)
    (directory / "bundled").mkdir(parents=True, exist_ok=True)
    found = evaluate_player(played, held_out, ws.recipe.evaluate.seed)
    save_evaluation(found, directory / "bundled")
    return headline(found.metrics)


def _latency(ws: Workspace) -> dict[str, float]:
    """First-frame latency of the first bidirectional, the first causal multi-step and the last model: same clip, same
    machine, same process."""
    from worldline.evaluate.latency import first_frame_latency, latency_metrics

    steps, rollout = ws.recipe.evaluate.latency_steps, ws.recipe.rollout
    stages = {
        "bidirectional": ws.first("finetune"),
        "ar_multistep": ws.first(*MULTI_STEP_CAUSAL),
        "ar_fewstep": ws.last if ws.few_step(ws.last) else None,
    }
    players = {}
    for kind, stage in stages.items():
        if stage is not None:
            played = player(ws, stage)
            # All as the engine streams: weights laid out and cast once.
            dtype = inference_dtype(played.device)
            model, codec = played.model.freeze(dtype), played.codec.freeze(dtype)
            played = replace(played, model=model, codec=codec, bf16=dtype == torch.bfloat16)
            if kind != "ar_fewstep":
                plan = RolloutPlan.multi_step(played.plan.visibility, steps, rollout.guidance)
                played = replace(played, plan=plan)
            if played.whole_clip:
                played = replace(played, whole_clip=ws.recipe.evaluate.latency_latents)
            players[kind] = played
    longest = max(_episodes(ws, ws.run_dir / "episodes"), key=lambda e: len(e.frames))
    return latency_metrics(first_frame_latency(players, longest))
