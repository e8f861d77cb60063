"""`worldline data build` and `worldline data inspect`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from worldline.cli.common import Subcommands, add_overrides, command, duration

BUILD = """\
  worldline data build --out data/rooms                          the default number of maps
  worldline data build nano --out data/rooms                     as a recipe says
  worldline data build --out data/rooms --set maps=4 --set clips_per_map=8
  Stopped or killed? The same command goes on; finished units are kept.
"""
INSPECT = (
    "  worldline data inspect data/rooms --out rooms.png\n  worldline data inspect runs/nano-demo/data --clips 4\n"
)


def add(subcommands: Subcommands) -> None:
    """Register the subcommands."""
    top = command(subcommands, "data", lambda _: top.print_help(), "render clips with exact cameras, and look at them")
    inner = top.add_subparsers(metavar="ACTION")
    sub = command(inner, "build", build, "render clips, cameras and controls in a game engine; resumable", BUILD)
    sub.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="take the data options of this recipe (default: DataConfig's)"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    add_overrides(sub, "set one data option")
    sub.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one a CPU core)")
    sub = command(inner, "inspect", inspect, "a contact sheet with a bird's-eye view of the trajectories", INSPECT)
    sub.add_argument("data", type=Path, metavar="DIR", help="a built dataset")
    sub.add_argument("--out", type=Path, default=Path("dataset.png"), metavar="PNG", help="(default: dataset.png)")
    sub.add_argument("--clips", type=int, default=8, metavar="N", help="clips on the sheet (default: 8)")


def build(args: argparse.Namespace) -> int:
    """Render what is missing."""
    from rich.console import Console

    from worldline.data.build import DataConfig
    from worldline.recipes.builder import Place, to_data
    from worldline.recipes.builder import build as from_data
    from worldline.recipes.load import load_recipe, override
    from worldline.recipes.sources import build_data

    data = to_data(load_recipe(args.recipe).data.build) if args.recipe else {}
    for assignment in args.overrides:
        data = override(data, assignment)
    config, begin = from_data(DataConfig, data, Place("data options")), time.monotonic()
    build_data(config, args.out, args.workers)
    Console().print(f"{len(config.units())} units in {args.out}, {duration(time.monotonic() - begin)}", highlight=False)
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Draw the contact sheet."""
    from rich.console import Console

    from worldline.data.dataset import open_dataset
    from worldline.data.inspect import contact_sheet

    dataset = open_dataset(args.data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(dataset, args.out, clips=args.clips)
    Console().print(f"{len(dataset)} clips in {args.data}; sheet in {args.out}", highlight=False)
    return 0
