"""`python -m worldline.recipes.bundle RUN [--codec DIR]`: make the bundled assets of a finished run of recipe `nano`.

Weights are stored in bf16 (the models compute in it; masters stay with the run), each with its card.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

from worldline.models.registry import load_model, save_model
from worldline.recipes.assets import ASSETS, LINE
from worldline.schema import WorldlineError
from worldline.stream.world import WorldConfig

LIMIT_MB = 60


def bundle(run: Path, out: Path = ASSETS / LINE, *, codec: Path | None = None) -> Path:
    """Copy codec, base, world and start images of `run` to `out`. codec: another one of the same latents (its decoder
    trained further). Raises WorldlineError where a part is missing or the
    whole exceeds what may ship."""
    world = run / "world"
    if not (world / "world.json").is_file():
        raise WorldlineError(f"{run} holds no finished world (world/world.json); run `worldline run {run}` to its end")
    sources = {"codec": codec or world / "codec", "base": run / "base" / "model", "world": world}
    for name, source in sources.items():
        card = json.loads((source / "card.json").read_text()) if (source / "card.json").is_file() else {}
        # Where parts lay on the machine that made them is nobody's business; they ship side by side.
        card["starts_from"] = {part: f"../{part}" for part in card.get("starts_from", {})}
        save_model(load_model(source), out / name, card, dtype=torch.bfloat16)
    replace(WorldConfig.read(world), codec="../codec", starts="../starts").write(out / "world")
    shutil.rmtree(out / "starts", ignore_errors=True)
    shutil.copytree(world / "starts", out / "starts")
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    if size > LIMIT_MB:
        raise WorldlineError(f"the assets are {size:.0f} MB; expected at most {LIMIT_MB}, so make the models smaller")
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m worldline.recipes.bundle", description="Make the bundled assets.")
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--codec", type=Path, help="ship this codec, whose latents are the run's")
    asked = parser.parse_args()
    try:
        bundle(asked.run, codec=asked.codec)
    except WorldlineError as error:
        sys.exit(f"error: {error}")
