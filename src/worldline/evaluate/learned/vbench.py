"""VBench's own code on the clips of an evaluation, in the environment where it is installed.

Its pins conflict with most environments, so its command is called, never imported. Only the dimensions that VBench allows
for clips of one's own are asked for. Subject and background consistency fall with camera motion: read them beside the replay.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldline.evaluate.learned import NEEDS, Clip, Measured
from worldline.evaluate.suites import FPS
from worldline.schema import WorldlineError

DIMENSIONS = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip # temporal_flickering is for pictures without motion


def measure(clips: Sequence[Clip], command: Path) -> Measured:
    """Every dimension of the model and of the replay. Raises WorldlineError where the command fails."""
    if not os.access(command, os.X_OK) or command.is_dir():
        raise WorldlineError(f"{command} cannot be run; expected {NEEDS['vbench']}")
    from worldline.evaluate.exporters.vbench import write_videos

    rows: Measured = {}
    for row in ("model", "replay"):
        with tempfile.TemporaryDirectory(prefix="worldline-vbench-") as scratch:
            folder = Path(scratch)
            write_videos([(c.caption, c.row(row)) for c in clips], folder / "videos", FPS)
            rows[row] = {d: run(command, d, folder) for d in DIMENSIONS}
    return {**rows, "clips": len(clips)}


def run(command: Path, dimension: str, folder: Path) -> float:
    """One dimension of the clips in `folder`/videos."""
    out = folder / dimension
    asked = [str(command), "evaluate", "--dimension", dimension, "--videos_path", str(folder / "videos"),
             "--mode=custom_input", "--output_path", str(out)]  # fmt: skip
    done = subprocess.run(asked, capture_output=True, text=True, cwd=folder)
    files = sorted(out.glob("*_eval_results.json"))
    if done.returncode or not files:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise WorldlineError(f"{command} evaluate --dimension {dimension} failed ({last}); run it by hand to see more")
    return score_of(json.loads(files[-1].read_text()), dimension)


def score_of(results: Mapping[str, Any], dimension: str) -> float:
    """The mean that VBench writes: {dimension: [mean, [one entry a video]]}."""
    found = results.get(dimension)
    if not isinstance(found, list) or not found or not isinstance(found[0], (int, float)):
        raise WorldlineError(f"VBench wrote {results!r:.200}; expected {{{dimension!r}: [mean, [videos]]}}")
    return float(found[0])
