"""`worldline play`: serve a world and open the page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import Subcommands, command

if TYPE_CHECKING:
    from worldline.nn.quant import Scheme

EXAMPLES = """\
  worldline play                        the bundled world
  worldline play runs/nano-demo         the world of a run (or any world directory)
  worldline play --port 9000 --no-browser
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "play", main, "walk through a world in the browser: WASD, mouse, arrows", EXAMPLES)
    sub.add_argument("world", metavar="WORLD", nargs="?", help="a world or run directory (default: the bundled world)")
    sub.add_argument("--port", type=int, default=8000, metavar="N", help="port of the page (default: 8000)")
    sub.add_argument("--quantise", choices=("int8", "fp8"), help="with 8-bit linear layers")
    sub.add_argument(
        "--memory", type=int, metavar="N", help="latents of long ago that are seen again where the view comes back"
    )
    sub.add_argument("--no-browser", action="store_true", help="do not open a browser")


def main(args: argparse.Namespace) -> int:
    """Find the world and serve it."""
    found = find_world(args.world)
    return serve_world(found, port=args.port, browser=not args.no_browser, quantise=args.quantise, memory=args.memory)


def find_world(name: str | None) -> Path:
    """The world of a world directory, a run directory, or nothing (the bundled one). Raises WorldlineError."""
    from worldline.recipes.assets import bundled
    from worldline.schema import WorldlineError

    if name in (None, "nano", "bundled"):
        return bundled("world")
    for path in (Path(str(name)), Path(str(name)) / "world"):
        if (path / "world.json").is_file():
            return path
    raise WorldlineError(f"{name} is no world (no world.json); expected a world directory, a run directory, or nothing")


def serve_world(
    world: Path, *, port: int, browser: bool, quantise: Scheme | None = None, memory: int | None = None
) -> int:
    """Serve until interrupted."""
    from functools import partial

    from rich.console import Console

    from worldline.serve.app import serve
    from worldline.stream.engine import Engine

    def ready(url: str) -> None:
        Console().print(f"{world} is at [bold]{url}[/] (Ctrl-C stops it)", highlight=False, soft_wrap=True)

    serve(
        partial(Engine.load, world, quantise=quantise, memory=memory), port=port, open_browser=browser, on_ready=ready
    )
    return 0
