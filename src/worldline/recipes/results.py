"""Work of the last stages: the exported world, its figures, the report; and the evaluation after every model stage."""

from __future__ import annotations

import json
import shutil
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.models.registry import load_model, save_model
from worldline.recipes.measuring import HEADLINE, read_evaluation, read_metrics
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError
from worldline.stream.world import WorldConfig

if TYPE_CHECKING:
    from worldline.evaluate.suite import Evaluation


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
    write_starts(ws, directory / "starts")
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
    """Stage `report`: one offline page (index.html, with sheet-<stage>.png) and the same as data (report.json)."""
    from worldline.recipes.store import StageStore

    store, rows = StageStore(ws.run_dir), []
    for name in ("base", *ws.recipe.stages):
        found, record = read_evaluation(ws.run_dir / f"{name}-evaluation"), store.read(name)
        if found is not None:
            _sheet(found, directory / f"sheet-{name}.png")
        rows.append(
            {
                "stage": name,
                "seconds": None if record is None else round(record.seconds, 1),
                "losses": {} if record is None else record.losses,
                "metrics": {} if found is None else found.metrics,
            }
        )
    figures = read_metrics(ws.run_dir / "evaluate")
    data = {"recipe": ws.recipe.name, "stages": rows, "figures": figures}
    (directory / "report.json").write_text(json.dumps(data, indent=2) + "\n")
    (directory / "index.html").write_text(page(ws.recipe.name, rows, figures))
    return {}


def _sheet(found: Evaluation, path: Path, columns: int = 8) -> None:
    """Every film of an evaluation as a row of frames, evenly spread."""
    from PIL import Image

    strips = []
    for _, frames in found.films:
        picked = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        strips.append(np.concatenate(list(frames[picked]), axis=1))
    Image.fromarray(np.concatenate(strips, axis=0)).save(path)


def page(name: str, rows: list[dict[str, Any]], figures: dict[str, Any]) -> str:
    """The report as one HTML page without scripts or links to elsewhere."""
    heads = "".join(f"<th>{escape(key)}</th>" for key in ("stage", "seconds", *HEADLINE))
    body = "".join(
        "<tr>"
        + "".join(f"<td>{_cell(v)}</td>" for v in (r["stage"], r["seconds"], *map(r["metrics"].get, HEADLINE)))
        + "</tr>"
        for r in rows
    )
    totals = "".join(f"<tr><th>{escape(key)}</th><td>{_cell(value)}</td></tr>" for key, value in figures.items())
    sheets = "".join(
        f'<h2>{escape(r["stage"])}</h2><p>rows: truth, model</p><img src="sheet-{r["stage"]}.png" alt="{r["stage"]}">'
        for r in rows
        if r["metrics"]
    )
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:right}img{max-width:100%}"
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(name)}</title><style>{style}</style><h1>{escape(name)}</h1>"
        f"<table><tr>{heads}</tr>{body}</table>{sheets}<h2>figures</h2><table>{totals}</table>\n"
    )


def _cell(value: Any) -> str:
    """A figure to three decimals; a dash where it could not be had."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else escape(str(value))
