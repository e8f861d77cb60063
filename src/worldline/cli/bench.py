"""`worldline bench`: how fast a world streams on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from worldline.cli.common import Subcommands, command, write_json

EXAMPLES = "  worldline bench --model nano --seconds 20 --json bench.json\n  worldline bench --model runs/nano-demo\n"


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "bench", main, "measure frame rate and latency of a world here", EXAMPLES)
    sub.add_argument("--model", default="nano", metavar="WORLD", help="bundled, world or run directory (default: nano)")
    sub.add_argument("--seconds", type=float, default=20.0, metavar="S", help="how long to stream (default: 20)")
    sub.add_argument("--json", type=Path, metavar="F", help="write the figures as flat JSON")


def main(args: argparse.Namespace) -> int:
    """Stream and measure."""
    from rich.console import Console

    from worldline.cli.play import find_world
    from worldline.stream.bench import bench

    figures = bench(find_world(args.model), seconds=args.seconds)
    if args.json is not None:
        write_json(args.json, figures)
    console = Console()
    for key, value in figures.items():
        console.print(f"{key:>18} {value:.2f}" if isinstance(value, float) else f"{key:>18} {value}")
    return 0
