"""What `worldline plan` says a stage will hold, against what a process that trains it held at its peak.

    OMP_NUM_THREADS=1 python -m benchmarks.plan_memory

Every stage of a recipe runs in a process of its own, through `worldline run`, for a few steps; weights, pictures, batch and
method are the recipe's. Measured is the most memory the process had resident at any time (`ru_maxrss`), nothing subtracted:
Python, PyTorch, data and whatever the allocator has not given back included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.wan_forward import provenance
from rich.console import Console

from worldline.recipes.load import load_recipe
from worldline.recipes.planning import RecipePlan, plan_recipe
from worldline.recipes.preflight import this_device

LINES = ("nano-demo", "nano")
FEW = ("data.build.maps=6", "data.build.clips_per_map=8", "data.build.heldout_maps=1", "evaluate.stages=false")
LOOKS = (
    5  # steps between closer looks of the health check, so that a short run has two: they hold more than other steps
)


def shortened(recipe: str, steps: int) -> list[str]:
    """The recipe with few clips and `steps` steps a stage: how long it runs, not what it holds."""
    whole = load_recipe(recipe)
    found = [*FEW, f"health.every={LOOKS}"]
    made_here = [part for part in ("codec", "base") if getattr(whole, part).path is None]
    stages = [*made_here, *(f"stages.{name}" for name in whole.stages)]
    found += [f"{at}.train.steps={steps}" for at in stages]
    for name, stage in whole.stages.items():
        if stage.method == "ode":
            found += [f"stages.{name}.options.clips=16", f"stages.{name}.options.euler_steps=4"]
    return found


def peak(command: list[str]) -> int:
    """Bytes a command had resident at most, of its own and not of its children. Raises SystemExit where it fails."""
    pid = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(recipe: str, steps: int, folder: Path, known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Planned and measured bytes of every stage, as they are measured."""
    overrides = shortened(recipe, steps)
    plan: RecipePlan = plan_recipe(load_recipe(recipe, overrides), this_device(1))
    words = [word for override in overrides for word in ("--set", override)]
    run = [sys.executable, "-m", "worldline.cli", "run", recipe, "--run-dir", str(folder), *words]
    for stage in plan.stages:
        if stage.name in known:
            measured = known[stage.name]["measured_mib"] * 2**20
        else:
            peak([*run, "--until", "data" if stage.name == "codec" else "encode"])
            measured = peak([*run, "--until", stage.name])
        parts = {kind: round(amount / 2**20, 1) for kind, amount in stage.memory.items() if amount}
        row = {"phase": stage.phase, "planned_mib": round(stage.peak / 2**20), "measured_mib": round(measured / 2**20)}
        yield stage.name, {**row, "error": round(stage.peak / measured - 1, 4), "parts_mib": parts}


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=LINES)
    parser.add_argument("--steps", type=int, default=LOOKS + 2)
    parser.add_argument("--json", type=Path, help="where to write (default: benchmarks/results/DATE-plan-memory.json)")
    parser.add_argument(
        "--again", type=Path, metavar="F", help="an earlier result, whose stages are planned again only"
    )
    args = parser.parse_args()
    known = json.loads(args.again.read_text())["recipes"] if args.again else {}
    results: dict[str, Any] = {**provenance(), "steps": args.steps, "recipes": {}}
    out = args.json or Path(__file__).parent / "results" / f"{results['date']}-plan-memory.json"
    console = Console(width=100, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in args.recipes:
            for name, row in measure(recipe, args.steps, Path(folder) / recipe, known.get(recipe, {})):
                results["recipes"].setdefault(recipe, {})[name] = row
                out.write_text(json.dumps(results, indent=1) + "\n")
                planned, measured = row["planned_mib"], row["measured_mib"]
                console.print(
                    f"{recipe:10} {name:12} planned {planned:5} MiB, measured {measured:5}, {row['error']:+.1%}"
                )


if __name__ == "__main__":
    main()
