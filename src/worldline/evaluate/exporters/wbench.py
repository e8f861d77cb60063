"""WBench (arXiv 2605.25874): one combined video a case, split into turns of one action each.

    <out>/work_dirs/<model>/videos/case_<id>_combined.mp4, turns.json (start frame of every turn and the end), meta.json
    <out>/data/cases/case_<id>.json (id, settings, interactions), <out>/data/images/<id>.png

Its actions are held keys: W A S D for walking, left right up down for looking, joined by +. A turn here is a stretch of one
action; amplitude and timing within it are lost, as WBench's navigation score normalises both away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worldline.evaluate.exporters import Episode
from worldline.evaluate.store import write_json
from worldline.schema import Controls
from worldline.video import write_exact

SCORED = {
    "W", "A", "S", "D", "left", "right", "up", "down", "W+A", "W+D", "S+D", "W+left", "W+right", "W+up", "W+down",
}  # fmt: skip # what its navigation metric knows; other turns are passed over there


def write(episodes: Sequence[Episode], model: str, out: Path) -> dict[str, Any]:
    """The whole layout; returns id -> case and the share of turns that its navigation metric scores."""
    work, turns, where = out / "work_dirs" / model, {}, {}
    for number, e in enumerate(episodes, start=1):
        name = str(number)
        actions, bounds = turns_of(e.controls)
        write_exact(e.frames, work / "videos" / f"case_{name}_combined.mp4", e.fps)
        turns[name] = {"turn_frames": bounds}
        (out / "data" / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(e.start).save(out / "data" / "images" / f"{name}.png")
        write_json(out / "data" / "cases" / f"case_{name}.json", case_of(name, e, actions))
        scored = sum(a in SCORED for a in actions)
        where[name] = {"case": e.case, "turns": len(actions), "scored_turns": scored}
    fps = episodes[0].fps if episodes else 0
    write_json(work / "turns.json", {"fps": int(fps) if fps == int(fps) else fps, "cases": turns})
    # `org` and `contact` are the submitter's to fill in.
    meta = {"model_name": model, "type": "action", "display_name": model, "org": "", "contact": ""}
    write_json(work / "meta.json", meta)
    return where


def case_of(name: str, e: Episode, actions: Sequence[str]) -> dict[str, Any]:
    """A navigation case as WBench's own are written."""
    return {
        "id": name,
        "description": e.caption,
        "settings": {"perspective": "first_person", "initial_image": f"images/{name}.png"},
        "interactions": [{"type": "navigation", "action": action} for action in actions],
    }


def turns_of(controls: Controls) -> tuple[list[str], list[int]]:
    """Actions of the stretches of a control track [F], and frames where they start, with the end: n + 1 of them. Row t
    moves frame t to t + 1, and the given frame 0 belongs to the first turn."""
    rows = [action(m, k) for m, k in zip(controls.move, controls.look, strict=True)]
    changes = [t for t in range(1, len(rows)) if rows[t] != rows[t - 1]]
    begins = [0, *changes]
    bounds = [0, *(t + 1 for t in changes), len(rows) + 1]
    assert all(a < b for a, b in pairwise(bounds))
    return [rows[t] for t in begins], bounds


def action(move: np.ndarray, look: np.ndarray) -> str:
    """The keys of one row: move (right, up, forward), look (yaw right, pitch up, roll); `stop` for none."""
    parts = []
    for value, plus, minus in (
        (move[2], "W", "S"), (move[0], "D", "A"), (look[0], "right", "left"), (look[1], "up", "down"),
    ):  # fmt: skip
        if value:
            parts.append(plus if value > 0 else minus)
    return "+".join(parts) or "stop"
