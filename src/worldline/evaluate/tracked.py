"""A published evaluation told to trackers: every figure with its floors, and the worst episodes as film strips and clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldline.evaluate.card import columns
from worldline.evaluate.films import contact_sheet
from worldline.evaluate.results import read_results
from worldline.evaluate.runner import Plan, shown
from worldline.evaluate.suites import FPS
from worldline.evaluate.truth import truth_of
from worldline.track import open_trackers

EPISODES = 3  # worst ones told as pictures
SECONDS = 8  # of a clip
COLUMNS = 9  # frames of a strip


def tell(names: Sequence[str], plan: Plan, folder: Path) -> None:
    """Open trackers under `folder`, tell the results of `plan.out`, close them. Raises TrackerError as opening does."""
    results = read_results(plan.out)
    model, stamp = results["model"], results["stamp"]
    facts = {
        "model": model["name"], "weights": model["weights"], "preset": results["preset"], "protocol": results["protocol"],
        "suite": results["suite_hash"], "machine": stamp["machine"], "commit": stamp["git"], **model["facts"],
    }  # fmt: skip
    headline, wanted = set(columns(results)), {c.id: c for c in plan.cases()}
    values = {
        f"eval/{name}" if row == "model" else f"eval-{row}/{name}": float(figure["value"])
        for row, figures in results["figures"].items()
        for name, figure in figures.items()
        if figure["status"] == "ok" and (row == "model" or name in headline)
    }
    trackers = open_trackers(names, folder, f"{model['name']}/{results['preset']}", facts)
    for tracker in trackers:
        tracker.scalars(values, 0)
    for entry in results["worst"][:EPISODES]:
        case = wanted[entry["case"]]
        truth = truth_of(case, plan.truth, model["height"], model["width"]).frames
        frames = shown(plan.out, case)
        strip = contact_sheet([("truth", truth), ("model", frames)], max(1, -(-len(frames) // COLUMNS)), 2).convert(
            "RGB"
        )
        pair = np.concatenate([truth, frames], axis=2)[: SECONDS * FPS + 1]
        for tracker in trackers:
            tracker.image(f"films/{case.id}", np.asarray(strip), 0)
            tracker.video(f"clips/{case.id}", pair, FPS, 0)
    for tracker in trackers:
        tracker.close()
