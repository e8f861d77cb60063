"""`worldline demo`: the whole conversion on a laptop, a report, and the page."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from worldline.cli.common import ConsoleProgress, Subcommands, add_overrides, command, duration, write_json

EXAMPLES = """\
  worldline demo                                  data -> camera -> causal -> few-step -> report, then the page
  worldline demo --no-serve --json figures.json   for scripts: stop before serving, write flat JSON
  Stopped? The same command goes on where it was.
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "demo", main, "convert the bundled base into a world, then play it", EXAMPLES)
    sub.add_argument("--recipe", default="nano-demo", metavar="RECIPE", help="another recipe (default: nano-demo)")
    sub.add_argument("--run-dir", type=Path, metavar="DIR", help="where stages write (default: runs/<recipe name>)")
    add_overrides(sub)
    sub.add_argument("--no-serve", action="store_true", help="stop after the report")
    sub.add_argument("--no-browser", action="store_true", help="serve without opening a browser")
    sub.add_argument("--port", type=int, default=8000, metavar="N", help="port of the page (default: 8000)")
    sub.add_argument("--json", type=Path, metavar="F", help="write the figures as flat JSON")


def main(args: argparse.Namespace) -> int:
    """Run the recipe, write the figures, serve."""
    from rich.console import Console

    from worldline.recipes.load import load_recipe
    from worldline.recipes.pipeline import run

    console, begin = Console(), time.monotonic()
    recipe = load_recipe(args.recipe, args.overrides)
    run_dir = args.run_dir or Path("runs") / recipe.name
    result = run(recipe, run_dir, progress=ConsoleProgress(console))
    seconds = time.monotonic() - begin
    if args.json is not None:
        # A rerun skips finished stages: seconds_stages is what they took when they ran.
        stages = sum(record.seconds for record in result.records)
        write_json(args.json, {"seconds_total": seconds, "seconds_stages": stages, **result.metrics})
    console.print(f"[bold green]done[/] in {duration(seconds)}; report: {result.report}", highlight=False)
    if args.no_serve:
        return 0
    from worldline.cli.play import serve_world

    return serve_world(result.world, port=args.port, browser=not args.no_browser)
