"""What the simulator shows of a case: the truth, and what it shows a player who does something else.

On disk, under a folder that any number of evaluations share: <case>-<fingerprint>.safetensors. Rendering is
deterministic: the same case gives the same bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldline.evaluate import scripts
from worldline.evaluate.suites import Case
from worldline.schema import CameraPath, Controls, WorldlineError

if TYPE_CHECKING:
    from worldline.data.replay import Replay

FORMAT = 1
OTHERS = ("other", "half", "mirrored")  # replays from the same start under changed controls
ELSEWHERE = "a corridor with red bricks and a blue carpet floor, next to a green hall"  # the prompt of `start-prompt`
NOISE, BLUR = 60.0, 4.0  # of a spoilt start: grey levels, pixels


@dataclass(frozen=True)
class Truth:
    """frames uint8 [F + 1, H, W, 3]; cameras [F + 1]; start: the image a model is given; caption; replays: frames under
    the controls of OTHERS."""

    case: Case
    frames: np.ndarray
    cameras: CameraPath
    start: np.ndarray
    caption: str
    replays: dict[str, np.ndarray]


def truth_of(case: Case, folder: str | Path, height: int = 64, width: int = 96) -> Truth:
    """Read, or render and keep. Raises WorldlineError where something must be rendered and there is no game engine."""
    from safetensors.numpy import load_file, save_file

    path = truth_path(case, folder, height, width)
    if not path.is_file():
        arrays = _render(case, height, width)
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_suffix(f".tmp{os.getpid()}")
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp)
        os.replace(tmp, path)
    a = load_file(path)
    return Truth(
        case,
        a["frames"],
        CameraPath(a["c2w"], a["K"]),
        _spoilt(a["frames"][0], case.start, case.seed),
        bytes(a["caption"]).decode(),
        {name: a[name] for name in OTHERS},
    )


def truth_path(case: Case, folder: str | Path, height: int, width: int) -> Path:
    """Where a case's truth is kept."""
    return Path(folder) / f"{width}x{height}-v{FORMAT}" / f"{case.id}-{case.fingerprint()}.safetensors"


def changed(controls: Controls, how: str) -> Controls:
    """The controls of one of OTHERS."""
    made = {
        "other": lambda: scripts.other_than(controls),
        "half": lambda: scripts.scaled(controls, 0.5),
        "mirrored": lambda: scripts.scaled(controls, -1.0),
    }
    if how not in made:
        raise WorldlineError(f"replay {how!r}; expected one of {', '.join(OTHERS)}")
    return made[how]()


def look(frames: np.ndarray, name: str) -> np.ndarray:
    """The picture of a split. `swap`: colour channels exchanged (red shows green, green blue, blue red), as a palette
    that no texture of the source has would look."""
    if name not in ("", "swap"):
        raise WorldlineError(f"look {name!r}; expected none or 'swap'")
    return np.ascontiguousarray(frames[..., [1, 2, 0]]) if name == "swap" else frames


def _render(case: Case, height: int, width: int) -> dict[str, np.ndarray]:
    from worldline.data.replay import Replay

    with Replay(case.map_seed, height=height, width=width) as replay:
        frames, cameras = replay.play(case.spawn, case.controls)
        arrays = {name: look(_play(replay, case, name), case.look) for name in OTHERS}
        caption = replay.level.caption(case.spawn.x, case.spawn.y)
        if case.start == "prompt":
            caption = ELSEWHERE
    said = np.frombuffer(caption.encode(), dtype=np.uint8)
    return arrays | {"frames": look(frames, case.look), "c2w": cameras.c2w, "K": cameras.K, "caption": said}


def _play(replay: Replay, case: Case, how: str) -> np.ndarray:
    return replay.play(case.spawn, changed(case.controls, how))[0]


def _spoilt(image: np.ndarray, how: str, seed: int) -> np.ndarray:
    """The start image a model is given in S9."""
    import cv2

    if how == "noise":
        noise = np.random.default_rng(seed).normal(0, NOISE, image.shape)
        return (image + noise).round().clip(0, 255).astype(np.uint8)
    if how == "blur":
        return cv2.GaussianBlur(image, (0, 0), BLUR)
    return np.zeros_like(image) if how == "black" else image
