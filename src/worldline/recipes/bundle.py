"""`python -m worldline.recipes.bundle RUN`: make the bundled assets of a finished run of recipe `nano`.

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


def bundle(
    run: Path, out: Path = ASSETS / LINE, *, codec: Path | None = None, average: tuple[str, float] | None = None
) -> Path:
    """Copy codec, base, world and start images of `run` to `out`. codec: another one of the same latents (its decoder
    trained further); average: a stage of the run and its share in the world's weights, the rest being the world's own
    (docs/decisions/0006-long-clips-last-two-steps.md). Raises WorldlineError where a part is missing or the whole exceeds
    what may ship."""
    world = run / "world"
    if not (world / "world.json").is_file():
        raise WorldlineError(f"{run} holds no finished world (world/world.json); run `worldline run {run}` to its end")
    sources = {"codec": codec or world / "codec", "base": run / "base" / "model", "world": world}
    for name, source in sources.items():
        card = json.loads((source / "card.json").read_text()) if (source / "card.json").is_file() else {}
        # Where parts lay on the machine that made them is nobody's business; they ship side by side.
        card["starts_from"] = {part: f"../{part}" for part in card.get("starts_from", {})}
        model = load_model(source)
        if name == "world" and average is not None:
            stage, share = average
            card["average"] = {stage: share}
            other = load_model(run / stage / "model").state_dict()
            model.load_state_dict({k: v.lerp(other[k], share) for k, v in model.state_dict().items()})
        save_model(model, out / name, card, dtype=torch.bfloat16)
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
    parser.add_argument(
        "--average",
        nargs=2,
        metavar=("STAGE", "SHARE"),
        help="mix this stage's weights into the world, e.g. ar_long 0.3",
    )
    asked = parser.parse_args()
    try:
        mixed = None if asked.average is None else (asked.average[0], float(asked.average[1]))
        bundle(asked.run, codec=asked.codec, average=mixed)
    except WorldlineError as error:
        sys.exit(f"error: {error}")
