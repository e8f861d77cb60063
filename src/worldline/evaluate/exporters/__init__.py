"""An evaluation's clips and controls in the directory layouts that other benchmarks' evaluators read.

Each layout is one small file. Their evaluators run on machines of their own; what could not be checked against their code
is said in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.evaluate.store import write_json
from worldline.schema import CameraPath, Controls, WorldlineError

if TYPE_CHECKING:
    from worldline.evaluate.finished import Finished

LAYOUTS = {
    "wbench": "work_dirs/<model>/videos/case_<id>_combined.mp4, turns.json, meta.json; data/cases/case_<id>.json",
    "mind": "MIND-Data/1st_data/test/... with action.json, and <model>/1st_data/... with video.mp4",
    "vbench": "<prompt>-<n>.mp4 for custom input, and prompts.json",
    "worldscore": "worldscore_output/static/... with frames/, camera_data.json, image_data.json",
}


@dataclass(frozen=True)
class Episode:
    """One clip to export. frames, truth: uint8 [F + 1, H, W, 3] of the model and of the simulator; start: the image the
    model was given; cameras: F + 1 true poses in game units; loops: whether its script comes back to where it began."""

    case: str
    caption: str
    controls: Controls
    frames: np.ndarray
    truth: np.ndarray
    start: np.ndarray
    cameras: CameraPath
    fps: float
    loops: bool = False


def episodes_of(run: Finished) -> list[Episode]:
    """All clips of an evaluation. Raises ShapeError where a clip is not as long as its truth."""
    from worldline.evaluate.metrics.frames import check_pair
    from worldline.evaluate.suites import FPS

    found = []
    for case, truth in run.truths():
        frames = run.frames(case)
        check_pair(frames, truth.frames)
        loops = case.suite in ("S3", "S4", "S5", "S6") or "back" in case.marks
        found.append(
            Episode(case.id, truth.caption, case.controls, frames, truth.frames, truth.start, truth.cameras, FPS, loops)
        )
    return found


def export(layout: str, episodes: Sequence[Episode], model: str, out: Path) -> Path:
    """Write `episodes` in a layout under `out`, with export.json saying which clip is which. Raises WorldlineError on an
    unknown layout, or a folder that holds something else already."""
    if layout not in LAYOUTS:
        raise WorldlineError(f"layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    listed = out / "export.json"
    if out.is_dir() and any(out.iterdir()) and not listed.is_file():
        raise WorldlineError(f"{out} is not empty; expected a new folder, or one that an export wrote before")
    writer: Callable[[Sequence[Episode], str, Path], dict[str, Any]]
    writer = import_module(f"worldline.evaluate.exporters.{layout}").write
    where = writer(episodes, plain_name(model), out)
    write_json(listed, {"layout": layout, "model": model, "clips": where})
    return out


def plain_name(text: str) -> str:
    """A name that is safe as a folder's."""
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.")
    return kept or "model"
