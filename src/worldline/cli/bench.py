"""`worldline bench`: how fast a world streams on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from worldline.cli.common import Subcommands, command, write_json

EXAMPLES = """\
  worldline bench --seconds 20 --json bench.json    the bundled world
  worldline bench --model runs/nano-demo --seconds 60 --cold
  worldline bench --quantise int8
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "bench", main, "measure frame rate and latency of a world here", EXAMPLES)
    sub.add_argument("--model", default="nano", metavar="WORLD", help="bundled, world or run directory (default: nano)")
    sub.add_argument("--seconds", type=float, default=20.0, metavar="S", help="how long to stream (default: 20)")
    sub.add_argument("--quantise", choices=("int8", "fp8"), help="with 8-bit linear layers")
    sub.add_argument("--cold", action="store_true", help="also time a fresh process to its first frames")
    sub.add_argument(
        "--no-counts", action="store_true", help="leave out operations, host reads, graph breaks and the floor"
    )
    sub.add_argument("--json", type=Path, metavar="F", help="write the figures as flat JSON")


def main(args: argparse.Namespace) -> int:
    """Stream and measure."""
    from rich.console import Console

    from worldline.cli.play import find_world
    from worldline.serve.pictures import jpeg
    from worldline.stream.bench import bench, groups

    figures = bench(
        find_world(args.model),
        seconds=args.seconds,
        quantise=args.quantise,
        encode=jpeg,
        cold=args.cold,
        counts=not args.no_counts,
    )
    if args.json is not None:
        write_json(args.json, figures)
    show(Console(), groups(figures))
    return 0


def show(console: Any, grouped: dict[str, dict[str, Any]]) -> None:
    """One table, a heading for every group."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    for title, rows in grouped.items():
        table.add_row(f"[bold]{title}[/]", "")
        for key, value in rows.items():
            table.add_row(f"  {key}", f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
