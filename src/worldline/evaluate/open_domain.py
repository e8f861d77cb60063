"""Figures of a clip without a truth: what its action log and its frames alone tell. Nothing here says that it looks right."""

from __future__ import annotations

import math

import numpy as np

from worldline.evaluate.metrics.drift import segment_means, theil_sen
from worldline.evaluate.metrics.motion import AXES
from worldline.evaluate.metrics.quality import STATISTICS
from worldline.evaluate.response import control_response
from worldline.evaluate.score import Score
from worldline.evaluate.suites import FPS


def figures(score: Score) -> dict[str, float | None]:
    """Of one clip, None where it cannot be had: lag, gain and correlation of every axis that was asked (yaw and pitch in
    degrees shown a degree asked; walking has no unit, so its gain is left out), unexplained change, flicker, cuts, slopes
    of sharpness and colour, guards."""
    out: dict[str, float | None] = {}
    asked, shown = score.series["asked"], score.series["rates"].copy()
    shown[:, 0] = score.series["yaw"]
    for i, axis in enumerate(AXES):
        used = np.abs(asked[:, i]).max() > 0 and asked[:, i].std() > 0
        found = control_response([asked[:, i]], [shown[:, i]]) if used else None
        related = found is not None and abs(found.corr) >= 0.3
        out[f"{axis}_corr"] = found.corr if found is not None else None
        out[f"{axis}_lag"] = float(found.lag) if found is not None and related else None
        if axis in ("yaw", "pitch"):
            out[f"{axis}_gain"] = found.gain if found is not None else None
    quality = score.series["quality"][1:]
    sharp = segment_means(quality[:, STATISTICS.index("sharpness")], FPS)
    tint = np.stack([segment_means(quality[:, STATISTICS.index(n)], FPS) for n in ("cb", "cr")])
    out["warp_error"] = float(np.nanmean(score.series["warp"]))
    out["flicker_%"] = 100 * score.values["flicker"]
    out["cuts"] = score.values["cuts"]
    out["sharpness_%/s"] = 100 * theil_sen(sharp / max(sharp[0], 1e-6)) if len(sharp) > 1 else None
    out["colour_grey/s"] = theil_sen(np.sqrt(np.square(tint - tint[:, :1]).sum(axis=0))) if tint.shape[1] > 1 else None
    out |= {name: score.values[name] for name in ("blank", "flashes", "still")}
    return {k: None if v is None or not math.isfinite(v) else v for k, v in out.items()}
