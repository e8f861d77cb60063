"""Checkpoints: a folder a step, written aside and renamed, so that a half-written one never counts.

step-00000500/: <role>.safetensors, <role>.ema.safetensors, optimizers.pt, state.json.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.schema import WorldlineError

LAST = ("optimizers.pt", ".metadata")  # what one process, and what several, write when all else is there


def save_checkpoint(
    root: Path,
    step: int,
    weights: dict[str, dict[str, Tensor]],
    optimizers: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    best: str = "",
) -> Path:
    """Write checkpoint `step` atomically and drop all but the newest `keep` (and the best, see `prune`)."""
    final, tmp = root / f"step-{step:08d}", root / f".writing-{step:08d}-{os.getpid()}"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        for name, tensors in weights.items():
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, tmp / f"{name}.safetensors")
        torch.save(optimizers, tmp / "optimizers.pt")
        (tmp / "state.json").write_text(json.dumps(state))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(tmp, final)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    prune(root, keep, best)
    return final


def prune(root: Path, keep: int, best: str = "") -> None:
    """Drop all checkpoints but the newest `keep`, and the one where the logged value named `best` was lowest."""
    old = checkpoints(root)
    spared: Path | None = None
    if best:
        spared = min(old, key=lambda path: _logged(path).get(best, float("inf")))
    for path in old[:-keep]:
        if path != spared:
            shutil.rmtree(path, ignore_errors=True)


def _logged(path: Path) -> dict[str, float]:
    logged: dict[str, float] = json.loads((path / "state.json").read_text()).get("logged", {})
    return logged


def checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(
        p for p in root.glob("step-*") if (p / "state.json").is_file() and any((p / f).is_file() for f in LAST)
    )


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """(weights by file stem, optimizer states, state). Raises WorldlineError where the folder is not whole."""
    try:
        weights = {p.name.removesuffix(".safetensors"): load_file(p) for p in sorted(path.glob("*.safetensors"))}
        optimizers = torch.load(path / "optimizers.pt", weights_only=True, map_location="cpu")
        return weights, optimizers, json.loads((path / "state.json").read_text())
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WorldlineError(
            f"checkpoint {path} cannot be read ({error}); delete that folder to resume from the one before"
        ) from error
