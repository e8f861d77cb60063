"""`worldline run`: a recipe's stages in order, skipping what is done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import ConsoleProgress, Subcommands, add_overrides, command, duration

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.recipes.schema import Recipe

EXAMPLES = """\
  worldline run nano-demo                        a library recipe (see `worldline recipes`) into runs/nano-demo
  worldline run my.yaml --run-dir runs/mine      a recipe of your own
  worldline run runs/mine                        go on with that run, from where it was stopped
  worldline run runs/mine --from ode             redo ODE and all stages after it
  worldline run my.yaml --fork runs/mine --run-dir runs/other --set stages.camera.train.lr=1e-4
                                                 another run that takes over every stage the change leaves alone
  worldline run my.yaml --print                  show the resolved recipe and stages, run nothing
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "run", main, "run a recipe's stages in order, skipping what is done", EXAMPLES)
    sub.add_argument("recipe", metavar="RECIPE", help="library name, path to a .yaml, or a run directory to go on with")
    sub.add_argument("--from", dest="from_", metavar="STAGE", help="redo this stage and all after it")
    sub.add_argument("--until", metavar="STAGE", help="stop after this stage")
    add_overrides(sub)
    sub.add_argument("--run-dir", type=Path, metavar="DIR", help="where stages write (default: runs/<recipe name>)")
    sub.add_argument("--fork", type=Path, metavar="DIR", help="take over finished, equal stages of another run")
    sub.add_argument("--print", dest="show", action="store_true", help="show the resolved recipe and its stages only")


def main(args: argparse.Namespace) -> int:
    """Run."""
    from rich.console import Console

    from worldline.recipes.load import load_recipe
    from worldline.recipes.pipeline import run

    console = Console()
    recipe, run_dir = Path(args.recipe), args.run_dir
    if (recipe / "recipe.yaml").is_file():
        recipe, run_dir = recipe / "recipe.yaml", run_dir or recipe
    resolved = load_recipe(recipe if recipe.is_file() else args.recipe, args.overrides)
    run_dir = run_dir or Path("runs") / resolved.name
    if args.show:
        return show(console, resolved, run_dir)
    result = run(
        resolved, run_dir, from_=args.from_, until=args.until, fork=args.fork, progress=ConsoleProgress(console)
    )
    console.print(
        f"[bold]{run_dir}[/]: {len(result.records)} stages, {duration(sum(r.seconds for r in result.records))}"
    )
    if result.report is not None:
        console.print(f"report: {result.report}")
    return 0


def show(console: Console, recipe: Recipe, run_dir: Path) -> int:
    """The resolved recipe as YAML and the stages with their state."""
    import yaml
    from rich.table import Table

    from worldline.recipes.builder import to_data
    from worldline.recipes.graph import hashes
    from worldline.recipes.pipeline import plan
    from worldline.recipes.store import StageStore

    console.print(yaml.safe_dump(to_data(recipe), sort_keys=False, allow_unicode=True), highlight=False)
    nodes, store = plan(recipe, run_dir), StageStore(run_dir)
    wanted = hashes(nodes)
    table = Table("stage", "reads", "hash", "state")
    for node in nodes:
        record = store.read(node.name)
        state = record.status if record is not None and record.hash == wanted[node.name] else "to do"
        table.add_row(node.name, ", ".join(node.inputs), wanted[node.name][:12], state)
    console.print(table)
    return 0
