"""`worldline ablate`: minWM's three studies of camera fine-tuning, repeated on the nano line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import ConsoleProgress, Subcommands, add_overrides, command

if TYPE_CHECKING:
    from worldline.recipes.studies import Trial

EXAMPLES = """\
  worldline ablate all --preset quick              exact and noisy cameras, steps, batch size: 14 runs, under an hour of a core
  worldline ablate batch --preset quick            one study; runs that another study made are not made again
  worldline ablate all --fork runs/nano-demo       take over that run's clips and latents
  worldline ablate poses --preset smoke            four steps a run: does everything work here?
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "ablate", main, "repeat studies of camera fine-tuning, as a page with curves", EXAMPLES)
    sub.add_argument("study", metavar="STUDY", nargs="+", help="poses, steps, batch, or all")
    sub.add_argument("--preset", default="quick", metavar="P", help="smoke, quick or full (default: quick)")
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="where runs and the page go (default: runs/ablate-<preset>)"
    )
    sub.add_argument("--fork", type=Path, metavar="DIR", help="take over the equal clips and latents of another run")
    add_overrides(sub, "override one option of every run's recipe")


def main(args: argparse.Namespace) -> int:
    """Run what is missing."""
    from rich.console import Console

    from worldline.recipes.ablation import ablate
    from worldline.recipes.builder import did_you_mean
    from worldline.recipes.studies import PRESETS, STUDIES
    from worldline.schema import WorldlineError

    if args.preset not in PRESETS:
        raise WorldlineError(f"preset {args.preset!r}; {did_you_mean(args.preset, PRESETS)}")
    console = Console()

    def tell(number: int, count: int, trial: Trial) -> None:
        console.print(f"[bold]run {number} of {count}: {trial.name}[/]", highlight=False)

    out = args.out or Path("runs") / f"ablate-{args.preset}"
    studies = STUDIES if "all" in args.study else tuple(args.study)
    results = ablate(
        PRESETS[args.preset],
        out,
        studies,
        fork=args.fork,
        overrides=tuple(args.overrides),
        progress=ConsoleProgress(console),
        tell=tell,
    )
    for name, study in results["studies"].items():
        console.print(f"[bold]{name}[/] ({study['verdict']}): {study['statement']}", highlight=False)
    console.print(f"page: {out / 'ablation.html'}", highlight=False)
    return 0
