"""MIND (arXiv 2602.08025): ground truth with an action log, and the model's prediction beside it.

    <out>/MIND-Data/1st_data/test/{mem_test,action_space_test}/<case>/{action.json,video.mp4}
    <out>/<model>/1st_data/{mem_test,action_space_test}/<case>/video.mp4

Memory is the one frame a model is given, so `mark_time` is 1 and a prediction has one frame less than its truth. Scripts
that come back are memory tests. Poses are Unreal's: x forward, y right, z up (left-handed), centimetres, degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.exporters import Episode
from worldline.evaluate.store import write_json
from worldline.video import write_exact

CM_PER_UNIT = 100 / 32  # 32 game units are a metre
MARK = 1  # first predicted frame
TESTS = ("mem_test", "action_space_test")


def write(episodes: Sequence[Episode], model: str, out: Path) -> dict[str, Any]:
    """The whole layout; returns folder -> case."""
    where = {}
    for view in ("1st_data", "3rd_data"):  # its evaluator lists all four folders, empty or not
        for test in TESTS:
            (out / "MIND-Data" / view / "test" / test).mkdir(parents=True, exist_ok=True)
            (out / model / view / test).mkdir(parents=True, exist_ok=True)
    for e in episodes:
        test = TESTS[0] if e.loops else TESTS[1]
        truth = out / "MIND-Data" / "1st_data" / "test" / test / e.case
        write_exact(e.truth, truth / "video.mp4", e.fps)
        write_json(truth / "action.json", action_log(e))
        write_exact(e.frames[MARK:], out / model / "1st_data" / test / e.case / "video.mp4", e.fps)
        where[f"1st_data/{test}/{e.case}"] = {"case": e.case}
    return where


def action_log(e: Episode) -> dict[str, Any]:
    """action.json: one entry a frame, with the keys that lead to the next one (0 none, 1 and 2 the two directions)."""
    place, angles = unreal(e.cameras.c2w)
    data = []
    for t in range(len(e.frames)):
        codes = {"ws": 0, "ad": 0, "ud": 0, "lr": 0}
        if t < len(e.controls):
            move, look = e.controls.move[t], e.controls.look[t]
            codes = {
                "ws": _code(move[2]), "ad": _code(-move[0]), "ud": _code(look[1]), "lr": _code(-look[0]),
            }  # fmt: skip
        entry = {"time": t, **codes, "actor_pos": _xyz(place[t]), "actor_rpy": _xyz(angles[t])}
        data.append(entry)
    return {"mark_time": MARK, "total_time": len(e.frames), "caption": e.caption, "data": data}


def unreal(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """c2w [F, 4, 4] (OpenCV axes in a world x east, y north, z up, game units) -> places [F, 3] in cm and (roll, pitch, yaw)
    [F, 3] in degrees, as Unreal has them: y mirrored, yaw to the right, pitch up. Roll is 0: no script rolls."""
    place = c2w[:, :3, 3] * np.array([1.0, -1.0, 1.0]) * CM_PER_UNIT
    ahead = c2w[:, :3, 2]
    yaw = -np.rad2deg(np.arctan2(ahead[:, 1], ahead[:, 0]))
    pitch = np.rad2deg(np.arcsin(np.clip(ahead[:, 2], -1, 1)))
    return place, np.stack([np.zeros_like(yaw), pitch, yaw], axis=1)


def _code(value: float) -> int:
    """1 for the first direction (forward, left, up, left), 2 for the other."""
    return 0 if value == 0 else 1 if value > 0 else 2


def _xyz(v: np.ndarray) -> dict[str, float]:
    return {name: round(float(x), 4) + 0.0 for name, x in zip("xyz", v, strict=True)}
