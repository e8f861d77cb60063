"""What a process that trains on a CPU has resident beside the tensors of a step: a plan says so of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from worldline.recipes.schema import Recipe

RUNTIME = 520 * 2**20
"""Bytes of Python, PyTorch's CPU build, what a run and its plan import, and compiled kernels (Linux, torch 2.13)."""
ALLOCATOR = 0.195
"""Bytes that glibc keeps for every byte of activations a phase has had: blocks below 32 MiB go back to its heap and not to the
system, and what one phase leaves behind does not fit the next. Both fitted to the nano line (`benchmarks/plan_memory.py`)."""
KINDS = ("runtime", "data", "allocator")


def clips_of(recipe: Recipe, *, heldout: bool = True) -> int | None:
    """Encoded clips: those to be rendered (without the held-out ones where so asked), or those of the dataset; None where
    that is not there yet."""
    build = recipe.data.build
    if recipe.data.path is None:
        return (build.maps + (build.heldout_maps if heldout else 0)) * build.clips_per_map
    info = Path(recipe.data.path) / "dataset.json"
    return int(json.loads(info.read_text())["clips"]) if info.is_file() else None


def beside(recipe: Recipe, latent: int, frames: int, handled: float) -> dict[str, float]:
    """Bytes by what they are. latent: bytes of a latent frame; frames: of an encoded clip; handled: bytes of the activations
    of all phases, each at its height."""
    return {
        "runtime": float(RUNTIME),
        "data": float((clips_of(recipe, heldout=False) or 0) * frames * latent),
        "allocator": ALLOCATOR * handled,
    }
