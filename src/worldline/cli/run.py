"""`worldline run`: a recipe's stages in order, skipping what is done."""

from __future__ import annotations

import argparse
import os
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
  worldline run my.yaml --nproc 8                on eight processes (accelerators) of this machine, which train as one
  worldline run my.yaml --track tensorboard,wandb    training curves there, too (under the run, offline)
  worldline run my.yaml --print                  show the resolved recipe and stages, run nothing
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    summary = "run a recipe's stages in order, skipping what is done"
    sub = command(subcommands, "run", main, summary, EXAMPLES, aliases=("train",))
    sub.add_argument("recipe", metavar="RECIPE", help="library name, path to a .yaml, or a run directory to go on with")
    sub.add_argument("--from", dest="from_", metavar="STAGE", help="redo this stage and all after it")
    sub.add_argument("--until", metavar="STAGE", help="stop after this stage")
    add_overrides(sub)
    sub.add_argument("--run-dir", type=Path, metavar="DIR", help="where stages write (default: runs/<recipe name>)")
    sub.add_argument("--fork", type=Path, metavar="DIR", help="take over finished, equal stages of another run")
    sub.add_argument("--nproc", type=int, default=1, metavar="N", help="processes that train together (default: 1)")
    sub.add_argument("--restarts", type=int, default=1, metavar="N", help="restarts after a lost process (default: 1)")
    sub.add_argument(
        "--no-preflight", dest="preflight", action="store_false", help="start even if the plan says it will not fit"
    )
    sub.add_argument("--track", default="", metavar="T,..", help="log to tensorboard, wandb, trackio, rerun, too")
    sub.add_argument("--print", dest="show", action="store_true", help="show the resolved recipe and its stages only")


def main(args: argparse.Namespace) -> int:
    """Run."""
    from rich.console import Console

    from worldline import dist
    from worldline.cli.launch import again
    from worldline.recipes.load import load_recipe
    from worldline.recipes.pipeline import run
    from worldline.schema import WorldlineError
    from worldline.track import parse

    track = parse(args.track)
    if args.nproc < 1 or args.restarts < 0:
        raise WorldlineError(f"--nproc {args.nproc} --restarts {args.restarts}: expected at least 1 and 0")
    recipe, run_dir = Path(args.recipe), args.run_dir
    if (recipe / "recipe.yaml").is_file():
        recipe, run_dir = recipe / "recipe.yaml", run_dir or recipe
    resolved = load_recipe(recipe if recipe.is_file() else args.recipe, args.overrides)
    run_dir = run_dir or Path("runs") / resolved.name
    console = Console(quiet=int(os.environ.get("RANK", "0")) > 0)
    if args.show:
        return show(console, resolved, run_dir)
    if args.preflight and not dist.launched():
        check(console, resolved, args.nproc, args.until)
    if args.nproc > 1 and not dist.launched():
        return again(args.nproc, given(args, run_dir), restarts=args.restarts)
    dist.start()
    try:
        result = run(
            resolved, run_dir, from_=args.from_, until=args.until, fork=args.fork, progress=ConsoleProgress(console),
            track=track,
        )  # fmt: skip
    finally:
        dist.stop()
    console.print(
        f"[bold]{run_dir}[/]: {len(result.records)} stages, {duration(sum(r.seconds for r in result.records))}"
    )
    if result.report is not None:
        console.print(f"report: {result.report}")
    return 0


def check(console: Console, recipe: Recipe, processes: int, until: str | None) -> None:
    """What each stage will take on this machine, before anything is loaded. Raises DoesNotFitError."""
    from rich.table import Table

    from worldline.cli.plan import count, hours
    from worldline.recipes.preflight import preflight

    plan = preflight(recipe, processes, until=until)
    table = Table(
        "stage", "trained", "batch", "steps", "GiB a process", "about", box=None, header_style="dim", style="dim"
    )
    for stage in plan.stages:
        figures = (count(stage.trained), str(stage.global_batch), f"{stage.steps:,}", f"{stage.peak / 2**30:.1f}")
        table.add_row(stage.name, *figures, hours(stage.seconds))
    console.print(table)


def given(args: argparse.Namespace, run_dir: Path) -> list[str]:
    """The command line of what was asked, for each of several processes."""
    optional = {"--from": args.from_, "--until": args.until, "--fork": args.fork, "--track": args.track or None}
    words = [str(word) for name, value in optional.items() if value is not None for word in (name, value)]
    overrides = [word for override in args.overrides for word in ("--set", override)]
    return ["run", args.recipe, "--run-dir", str(run_dir), *words, *overrides, "--nproc", str(args.nproc)]


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
