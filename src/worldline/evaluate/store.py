"""Scores and clips on disk: one file an episode, whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.score import METRIC_VERSION, Score


def score_path(folder: Path, case: str, fingerprint: str) -> Path:
    """Where the score of a case lies; another script or another formula has another name."""
    return folder / f"{case}-{fingerprint}-m{METRIC_VERSION}.npz"


def write_score(path: Path, score: Score) -> None:
    """By temporary name and rename."""
    said = {k: getattr(score, k) for k in ("case", "suite", "variant", "split", "values")}
    arrays: dict[str, Any] = {**score.series, "said": np.frombuffer(json.dumps(said).encode(), dtype=np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with tmp.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(tmp, path)


def read_score(path: Path) -> Score:
    """What `write_score` wrote."""
    with np.load(path) as file:
        arrays = {k: file[k] for k in file.files}
    said = json.loads(bytes(arrays.pop("said")).decode())
    return Score(said["case"], said["suite"], said["variant"], said["split"], said["values"], arrays)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """uint8 [F, H, W, 3], bit for bit."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file({"frames": np.ascontiguousarray(frames)}, tmp)
    os.replace(tmp, path)


def read_clip(path: Path) -> np.ndarray:
    """What `write_clip` wrote."""
    from safetensors.numpy import load_file

    frames: np.ndarray = load_file(path)["frames"]
    return frames


def write_json(path: Path, data: Any) -> None:
    """By temporary name and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    tmp.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")
    os.replace(tmp, path)
