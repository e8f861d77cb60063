"""JEDi (Luo et al. 2024): V-JEPA features of 16-frame windows under a polynomial kernel; steadier than FVD on few clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from worldline.evaluate.learned import NEEDS, Clip, Measured, digest
from worldline.evaluate.learned.distances import polynomial_mmd
from worldline.evaluate.learned.video_features import FRAMES, features_of, load_script

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WINDOWS = 32


def measure(clips: Sequence[Clip], path: Path) -> Measured:
    """jedi of the model and of the floors; skipped below WINDOWS windows."""
    count = sum((len(c.row("replay")) - 1) // FRAMES for c in clips)
    if count < WINDOWS:
        return {"reason": f"{count} windows of {FRAMES} frames, {WINDOWS} are needed; use a larger preset"}
    script = load_script(path, NEEDS["jedi"])

    def network(x: Tensor) -> Tensor:
        mean, deviation = (x.new_tensor(v)[:, None, None, None] for v in (MEAN, DEVIATION))
        found: Tensor = script(((x + 1) / 2 - mean) / deviation)
        return found

    truth = features_of(clips, "replay", network)
    rows = {row: {"jedi": round(polynomial_mmd(features_of(clips, row, network), truth), 4)}
            for row in ("model", "frozen", "other-actions")}  # fmt: skip
    return {**rows, "clips": len(clips), "windows": count, "weights": digest(path)}
