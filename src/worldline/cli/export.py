"""`worldline export`: an evaluation's clips in another benchmark's layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from worldline.cli.common import Subcommands, command

EXAMPLES = """\
  worldline export wbench runs/evaluate-nano-smoke out/wbench       videos, turns and cases for WBench
  worldline export mind runs/evaluate-nano-quick out/mind           ground truth with action logs, and predictions
  worldline export vbench runs/evaluate-nano-quick out/vbench       for vbench evaluate --mode=custom_input
  worldline export worldscore runs/evaluate-nano-quick out/ws       frames and cameras
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    summary = "write an evaluation's clips as WBench, MIND, VBench or WorldScore read them"
    sub = command(subcommands, "export", main, summary, EXAMPLES)
    sub.add_argument("layout", metavar="LAYOUT", help="wbench, mind, vbench or worldscore")
    sub.add_argument("run", metavar="RUN", type=Path, help="directory of a finished evaluation")
    sub.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    sub.add_argument(
        "--truth", type=Path, metavar="DIR", help="rendered truths (default: where the evaluation kept them)"
    )
    sub.add_argument("--name", metavar="N", help="the model's name there (default: as evaluated)")


def main(args: argparse.Namespace) -> int:
    """Export."""
    from rich.console import Console

    from worldline.evaluate.exporters import LAYOUTS, episodes_of, export
    from worldline.evaluate.finished import read_run
    from worldline.schema import WorldlineError

    if args.layout not in LAYOUTS:
        raise WorldlineError(f"layout {args.layout!r}; expected one of {', '.join(LAYOUTS)}")
    run = read_run(args.run, args.truth)
    episodes = episodes_of(run)
    export(args.layout, episodes, args.name or run.name, args.out)
    Console().print(f"{len(episodes)} clips in {args.out}: {LAYOUTS[args.layout]}", highlight=False)
    return 0
