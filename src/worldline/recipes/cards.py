"""The card saved with every model: where the weights come from."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

import torch

from worldline.recipes.assets import located
from worldline.recipes.workspace import Workspace

LICENCE = "Apache-2.0"


def hardware() -> str:
    """The machine in words: `1 x NVIDIA H200` or `x86_64 CPU, 2 threads`, without names of hosts or people."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def licence(ws: Workspace, stage: str) -> str:
    """Terms of a stage's weights: those of all weights that they are made from, the package's own where none says any."""
    if stage in ws.recipe.stages:
        sources = [ws.model_dir(source) for source in ws.recipe.stages[stage].roles().values()]
    else:
        init = {"base": ws.recipe.base.init, "codec": ws.recipe.codec.init}.get(stage)
        sources = [] if init is None else [located(init, stage)]
    cards = [json.loads((s / "card.json").read_text()) for s in sources if (s / "card.json").is_file()]
    foreign = dict.fromkeys(str(c["licence"]) for c in cards if c.get("licence", LICENCE) != LICENCE)
    return "; ".join(foreign) or LICENCE


def card(ws: Workspace, stage: str, *, steps: int, seconds: float, losses: dict[str, float]) -> dict[str, Any]:
    """Provenance of a stage's weights, as data."""
    from worldline.recipes.load import recipe_hash

    clips = ws.clips().info
    return {
        "licence": licence(ws, stage),
        "stage": stage,
        "recipe": ws.recipe.name,
        "recipe_hash": recipe_hash(ws.recipe)[:12],
        "seed": ws.recipe.seed,
        "data": f"{clips['clips']} clips of {clips['source']}, {clips['licence']}, config {clips['fingerprint']}",
        "starts_from": {part: str(ws.outside(part)) for part in ("codec", "base") if ws.outside(part) is not None},
        "steps": steps,
        "seconds": round(seconds, 1),
        "losses": {k: round(v, 5) for k, v in losses.items()},
        "hardware": hardware(),
        "software": f"worldline {version('worldline')}, torch {torch.__version__}",
    }
