"""Work of the last stages: the exported world, its figures, the report; and the evaluation after every model stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from worldline.models.registry import load_model, save_model
from worldline.recipes.measuring import read_metrics
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError
from worldline.stream.world import WorldConfig


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
    visibility = rollout.visibility()
    write_starts(ws, directory / "starts")
    described = WorldConfig(
        codec="codec",
        starts="starts",
        visibility=visibility,
        sigmas=RolloutPlan.few_step(visibility, rollout.steps).sigmas,  # guidance 1: students have it distilled in
        fps=float(clips.info["fps"]),
        height=int(first.frames.shape[1]),
        width=int(first.frames.shape[2]),
        K=tuple(float(k) for k in first.cameras.K[0]),
        move_scale=clips.move_scale,
        walk_units_per_frame=float(clips.info["walk_units_per_frame"]),
    )
    described.write(directory)  # last: a directory with a world.json is a whole world
    return {}


def write_starts(ws: Workspace, directory: Path) -> None:
    """First frames of held-out clips, one a map in turn, as lossless PNGs with their captions."""
    from PIL import Image

    held = ws.clips().split("heldout")
    by_map: dict[int, list[int]] = {}
    for i, row in enumerate(held.rows):
        by_map.setdefault(int(row["map_seed"]), []).append(i)
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


def report(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `report`."""
    return {}
