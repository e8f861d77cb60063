"""Work of the last stages: the exported world, its figures, the report; and the evaluation after every model stage."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldline.models.registry import load_model, save_model, weights_hash
from worldline.recipes.cards import hardware
from worldline.recipes.load import recipe_hash
from worldline.recipes.measuring import read_evaluation, read_metrics
from worldline.recipes.store import StageStore
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError
from worldline.stream.text import write_embeddings, write_images
from worldline.stream.world import WorldConfig, WorldText, read_starts
from worldline.train.health import findings
from worldline.train.log import read_log

if TYPE_CHECKING:
    from worldline.evaluate.report import StageReport


def world(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `world`: everything streaming needs, in one directory that can be moved and served."""
    assert ws.last is not None, "a world is planned only where there are stages"
    source = ws.model_dir(ws.last)
    card = json.loads((source / "card.json").read_text())
    card["quality"] = read_metrics(ws.run_dir / f"{ws.last}-evaluation")
    save_model(load_model(source), directory, card)
    shutil.copytree(ws.part("codec"), directory / "codec", dirs_exist_ok=True)
    clips, rollout = ws.clips(), ws.recipe.rollout
    first = clips[0]
    fx, fy, cx, cy = (float(k) for k in first.cameras.K[0])
    visibility = rollout.visibility()
    captions = write_starts(ws, directory / "starts")
    starts = read_starts(directory / "starts", *first.frames.shape[1:3])
    described = WorldConfig(
        codec="codec",
        starts="starts",
        visibility=visibility,
        sigmas=RolloutPlan.few_step(visibility, rollout.steps).sigmas,  # guidance 1: students have it distilled in
        fps=float(clips.info["fps"]),
        height=int(first.frames.shape[1]),
        width=int(first.frames.shape[2]),
        K=(fx, fy, cx, cy),
        move_scale=clips.move_scale,
        walk_units_per_frame=float(clips.info["walk_units_per_frame"]),
        text=_write_text(ws, directory, captions, [start.image for start in starts.values()]),
        memory=rollout.memory(),
    )
    described.write(directory)  # last: a directory with a world.json is a whole world
    return {}


def _write_text(ws: Workspace, directory: Path, captions: list[str], starts: list[np.ndarray]) -> WorldText | None:
    """The world's text encoder by name, with the embeddings of its starts, of no prompt and of a black picture (which warms an
    engine up); None where it has no files."""
    text = ws.recipe.text
    if text.kind == "hash" or text.path is None:
        return None
    encoder = ws.text_encoder()
    write_embeddings(directory, encoder, ["", *captions], text.kind)
    if (images := ws.image_encoder()) is not None:
        write_images(directory, images, [np.zeros_like(starts[0]), *starts])
    seen = None if images is None else images.fingerprint
    return WorldText(kind=text.kind, fingerprint=encoder.fingerprint, path=str(Path(text.path).resolve()), images=seen)


def write_starts(ws: Workspace, directory: Path) -> list[str]:
    """First frames of held-out clips, one a map in turn, those first that show most (a wall at arm's length shows little),
    as lossless PNGs with their captions, which are returned."""
    from PIL import Image

    held = ws.clips().split("heldout")
    by_map: dict[int, list[int]] = {}
    for i, row in enumerate(held.rows):
        by_map.setdefault(int(row["map_seed"]), []).append(i)
    for indices in by_map.values():
        indices.sort(key=lambda i: -_detail(held[i].frames[0]))
    turns = max(len(indices) for indices in by_map.values())
    order = [indices[turn] for turn in range(turns) for indices in by_map.values() if turn < len(indices)]
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for n, i in enumerate(order[: ws.recipe.world.starts]):
        clip = held[i]
        Image.fromarray(np.asarray(clip.frames[0])).save(directory / f"{n:02d}.png")
        rows.append({"file": f"{n:02d}.png", "caption": clip.caption, "map_seed": clip.map_seed})
    if not rows:
        raise WorldlineError("no held-out clip to start from; set data.build.heldout_maps to at least 1")
    (directory / "index.json").write_text(json.dumps(rows, indent=2) + "\n")
    return [str(row["caption"]) for row in rows]


def _detail(frame: np.ndarray) -> float:
    """Mean step between neighbouring pixels of a picture [H, W, 3]."""
    picture = frame.astype(np.float32)
    return float(sum(np.abs(np.diff(picture, axis=axis)).mean() for axis in (0, 1)))


def report(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `report`: one offline page (index.html), and its figures as data (report.json)."""
    from worldline.evaluate.report import RunInfo, write_report

    stages = [_stage_report(ws, name) for name in ("base", *ws.recipe.stages)]
    figures = read_metrics(ws.run_dir / "evaluate")
    rows = [
        {"stage": s.name, "steps": s.steps, "seconds": s.seconds, "metrics": dict(s.metrics), "health": s.health}
        for s in stages
    ]
    data = {"recipe": ws.recipe.name, "stages": rows, "figures": figures}
    (directory / "report.json").write_text(json.dumps(data, indent=2) + "\n")
    clips = ws.clips().info
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "data": f"{clips['clips']} clips, {clips['source']}",
        "recipe hash": recipe_hash(ws.recipe)[:12],
    }
    info = RunInfo(recipe=ws.recipe.name, about=ws.recipe.about, facts=facts)
    write_report(
        directory / "index.html", info, stages, {k: v for k, v in figures.items() if k.startswith("first_frame")}
    )
    return {}


def _stage_report(ws: Workspace, name: str) -> StageReport:
    """What the page shows of a stage: what is not there is left empty."""
    from worldline.evaluate.report import StageReport

    found, record = read_evaluation(ws.run_dir / f"{name}-evaluation"), StageStore(ws.run_dir).read(name)
    section, lines = ws.recipe.stages.get(name), read_log(ws.run_dir / name / "train")
    model = ws.part("base") if name == "base" else ws.model_dir(name)
    losses = {}
    for key in dict.fromkeys(k for line in lines for k in line if k.endswith("/loss")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        losses[key] = (np.array([p[0] for p in points]), np.array([p[1] for p in points]))
    shown = {} if found is None else {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    return StageReport(
        name=name,
        method="pretrained" if section is None else section.method,
        init=None if section is None else section.init,
        steps=int(lines[-1]["step"]) + 1 if lines else 0,
        seconds=0.0 if record is None else round(record.seconds, 1),
        weights=weights_hash(model) if (model / "model.safetensors").is_file() else "",
        losses=losses,
        health=[dataclasses.asdict(finding) for finding in findings(ws.run_dir / name / "train")],
        **shown,
    )
