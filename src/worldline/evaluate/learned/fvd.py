"""Fréchet video distance (Unterthiner et al. 2018): I3D features of 16-frame windows of a row against those of the replay.

It tells how like the set of clips is, not whether a clip follows its keys, and it is biased upwards by few windows: rows of
one evaluation share their number, others must not be compared with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from worldline.evaluate.learned import NEEDS, Clip, Measured
from worldline.evaluate.learned.distances import frechet_of
from worldline.evaluate.learned.video_features import Network, distances, load_script

WINDOWS = 256  # fewer say more of their number than of the clips


def measure(clips: Sequence[Clip], path: Path) -> Measured:
    """fvd of the model and of the floors; skipped below WINDOWS windows."""

    def load() -> Network:
        script = load_script(path, NEEDS["fvd"])

        def network(x: Tensor) -> Tensor:
            found: Tensor = script(x, rescale=False, resize=False, return_features=True)
            return found

        return network

    return distances(clips, path, "fvd", WINDOWS, load, frechet_of)
