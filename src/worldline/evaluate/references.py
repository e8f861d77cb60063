"""The rows every model is read beside: what a perfect one would score, and what a few simple mistakes would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worldline.schema import WorldlineError

if TYPE_CHECKING:
    from worldline.evaluate.truth import Truth

DELAY = 4  # frames
ROWS = {
    "replay": "ceiling: the simulator replayed, exactly",
    "codec": "ceiling of this model: the truth through its codec",
    "delayed": f"a perfect world {DELAY} frames late",
    "half-gain": "a perfect world that turns and walks at half speed",
    "other-actions": "floor: the simulator under the opposite controls",
    "frozen": "floor: the start image, repeated",
}


def reference(row: str, truth: Truth) -> np.ndarray:
    """Frames uint8 [F + 1, H, W, 3] of a row that needs no model. Raises WorldlineError on any other row."""
    frames = truth.frames
    if row == "replay":
        return frames
    if row == "frozen":
        return np.repeat(frames[:1], len(frames), axis=0)
    if row == "delayed":
        return np.concatenate([np.repeat(frames[:1], DELAY, axis=0), frames])[: len(frames)]
    if row in ("other-actions", "half-gain"):
        return truth.replays["other" if row == "other-actions" else "half"]
    raise WorldlineError(f"reference row {row!r}; expected replay, frozen, delayed, other-actions or half-gain")


SHARED = ("replay", "frozen", "other-actions", "delayed", "half-gain")  # the same for every model
