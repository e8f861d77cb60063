"""JEDi (Luo et al. 2024): V-JEPA features of 16-frame windows under a polynomial kernel; steadier than FVD on few clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from worldline.evaluate.learned import NEEDS, Clip, Measured
from worldline.evaluate.learned.distances import polynomial_mmd
from worldline.evaluate.learned.video_features import Network, distances, load_script

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WINDOWS = 32


def measure(clips: Sequence[Clip], path: Path) -> Measured:
    """jedi of the model and of the floors; skipped below WINDOWS windows."""

    def load() -> Network:
        script = load_script(path, NEEDS["jedi"])

        def network(x: Tensor) -> Tensor:
            mean, deviation = (x.new_tensor(v)[:, None, None, None] for v in (MEAN, DEVIATION))
            found: Tensor = script(((x + 1) / 2 - mean) / deviation)
            return found

        return network

    return distances(clips, path, "jedi", WINDOWS, load, polynomial_mmd)
