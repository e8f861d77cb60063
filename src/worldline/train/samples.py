"""A few clips played during training: what can be measured on their frames, and a picture of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldline.schema import ShapeError
from worldline.train.diagnosis import DRIFT, FLICKER, Finding, drift_finding, flicker_finding
from worldline.train.vitals import flicker

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 8  # frames of a clip in the picture
LEVEL = 0.15  # change of mean brightness (0 to 1), beyond the truth's, that is drift
LEAST = 1e-3  # unsteadiness (a quarter of a grey level) that counts as none


@dataclass(frozen=True)
class Samples:
    """frames: uint8 [B, F, H, W, 3] the model made; truth: the same clips; figures: what else was measured."""

    frames: np.ndarray
    truth: np.ndarray | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or (self.truth is not None and self.truth.shape != self.frames.shape):
            shape = None if self.truth is None else self.truth.shape
            raise ShapeError(f"frames {self.frames.shape}, truth {shape}: expected two arrays [B, F, H, W, 3]")


def measure(samples: Samples) -> dict[str, float]:
    """Figures of the frames, where there is a truth against the truth's: `drift` (log ratio of contrast, last third to
    first), `drift_level` (change of brightness), `flicker` (ratio of unsteadiness). Clips of 3 frames or more."""
    if samples.frames.shape[1] < 3:
        return dict(samples.figures)
    contrast, level, unsteady = _of(samples.frames)
    still = (0.0, 0.0, LEAST) if samples.truth is None else _of(samples.truth)
    return {
        **samples.figures,
        "drift": contrast - still[0],
        "drift_level": level - still[1],
        "flicker": max(unsteady, LEAST) / max(still[2], LEAST),
    }


def _of(frames: np.ndarray) -> tuple[float, float, float]:
    """(log ratio of contrast, change of brightness, unsteadiness) of frames [B, F, H, W, 3]."""
    x = frames.astype(np.float32) / 255
    contrast, levels = x.std(axis=(2, 3, 4)).mean(axis=0), x.mean(axis=(2, 3))  # [F], [B, F, 3]
    third = max(1, len(contrast) // 3)
    ratio = max(contrast[-third:].mean(), LEAST) / max(contrast[:third].mean(), LEAST)
    change = levels[:, -third:].mean() - levels[:, :third].mean()
    return math.log(ratio), float(change), float(flicker(torch.from_numpy(levels)))


def diagnose(step: int, seen: Sequence[Mapping[str, float]], *, final: bool = False) -> list[Finding]:
    """Findings on the figures of all samples of a stage so far: bad twice in a row and not mending, or bad at the end."""

    def stays(name: str, limit: float) -> bool:
        values = [abs(figures[name]) for figures in seen[-2:] if name in figures]
        if not values or values[-1] < limit:
            return False
        return final or (len(values) == 2 and values[0] >= limit and values[1] >= 0.9 * values[0])

    found, last = [], seen[-1] if seen else {}
    if stays("drift", DRIFT):
        what = f"contrast changed {math.exp(last['drift']):.2f} times as much as the truth's from start to end of the clips."
        found.append(drift_finding(step, "samples", what))
    elif stays("drift_level", LEVEL):
        what = f"brightness changed by {last['drift_level']:+.0%} of its range from start to end, beyond the truth's change."
        found.append(drift_finding(step, "samples", what))
    if stays("flicker", FLICKER):
        what = f"brightness jumps to and fro {last['flicker']:.1f} times as much as in the truth."
        found.append(flicker_finding(step, "samples", what))
    return found


def grid(samples: Samples) -> Image:
    """One row a clip, under its truth, `COLUMNS` frames of it from first to last."""
    from PIL import Image

    F = samples.frames.shape[1]
    chosen = np.unique(np.linspace(0, F - 1, min(F, COLUMNS)).round().astype(int))
    rows = []
    for i, clip in enumerate(samples.frames):
        rows += [] if samples.truth is None else [np.concatenate(list(samples.truth[i, chosen]), axis=1)]
        rows.append(np.concatenate(list(clip[chosen]), axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))
