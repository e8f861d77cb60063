"""Fréchet video distance (Unterthiner et al. 2018): I3D features of 16-frame windows of a row against those of the replay.

It tells how like the set of clips is, not whether a clip follows its keys, and it is biased upwards by few windows: rows of
one evaluation share their number, others must not be compared with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from worldline.evaluate.learned import NEEDS, Clip, Measured, digest
from worldline.evaluate.learned.distances import frechet_of
from worldline.evaluate.learned.video_features import FRAMES, features_of, load_script

WINDOWS = 256  # fewer say more of their number than of the clips


def measure(clips: Sequence[Clip], path: Path) -> Measured:
    """fvd of the model and of the floors; skipped below WINDOWS windows."""
    count = sum((len(c.row("replay")) - 1) // FRAMES for c in clips)
    if count < WINDOWS:
        return {"reason": f"{count} windows of {FRAMES} frames, {WINDOWS} are needed; use a larger preset"}
    script = load_script(path, NEEDS["fvd"])

    def network(x: Tensor) -> Tensor:
        found: Tensor = script(x, rescale=False, resize=False, return_features=True)
        return found

    truth = features_of(clips, "replay", network)
    rows = {row: {"fvd": round(frechet_of(features_of(clips, row, network), truth), 4)}
            for row in ("model", "frozen", "other-actions")}  # fmt: skip
    return {**rows, "clips": len(clips), "windows": count, "weights": digest(path)}
