"""`worldline evaluate`: how good a world is, measured against the simulator; `worldline compare`: two of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import Subcommands, command, duration
from worldline.schema import WorldlineError

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.evaluate.adapter import WorldAdapter

EXAMPLES = """\
  worldline evaluate nano --suite smoke            the bundled world, a few minutes
  worldline evaluate runs/nano-demo --suite quick  stopped? the same command goes on where it was
  worldline evaluate nano --suite quick --shard 0/2 --out runs/q   and 1/2 elsewhere, with the same --out
  worldline evaluate oracle --suite smoke          the simulator itself: the harness must score at its ceiling
  worldline evaluate --self-test                   plant faults and see that the right figures react
  worldline evaluate --list                        suites, presets and figures
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommands."""
    sub = command(subcommands, "evaluate", main, "measure a world against the simulator", EXAMPLES)
    sub.add_argument("world", metavar="WORLD", nargs="?", help="bundled (nano), world or run directory, or oracle")
    sub.add_argument("--suite", default="smoke", metavar="PRESET", help="smoke, quick or full (default: smoke)")
    sub.add_argument("--only", default="", metavar="S2,S3", help="these suites of the preset only")
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: runs/evaluate-<world>-<suite>)"
    )
    sub.add_argument("--truth", type=Path, default=Path("runs/truth"), metavar="DIR",
                     help="rendered truths, shared by all evaluations (default: runs/truth)")  # fmt: skip
    sub.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th episode from the I-th (default: 0/1)")
    sub.add_argument("--workers", type=int, metavar="N", help="processes beside this one (default: cores - 1)")
    sub.add_argument("--device", default="cpu", metavar="D", help="where the world runs (default: cpu)")
    sub.add_argument("--self-test", action="store_true", help="test the metrics by planted faults, with no world")
    sub.add_argument("--list", action="store_true", help="say what there is and leave")


def main(args: argparse.Namespace) -> int:
    """Evaluate one world."""
    import cv2
    from rich.console import Console

    cv2.setNumThreads(1)
    console = Console()
    if args.list:
        return _list(console)
    if args.self_test:
        return _self_test(console, args.truth)
    if args.world is None:
        raise WorldlineError("no world given; name one, such as nano, or use --self-test or --list")
    return _run(console, args)


def _run(console: Console, args: argparse.Namespace) -> int:
    import os
    import time

    from worldline.evaluate.runner import Plan, evaluate

    begin = time.monotonic()
    model = adapter_of(args.world, args.device)
    suites = tuple(s for s in args.only.split(",") if s)
    out = args.out or Path("runs") / f"evaluate-{model.info().name}-{args.suite}"
    workers = max(0, (os.cpu_count() or 1) - 1) if args.workers is None else args.workers
    plan = Plan(preset=args.suite, suites=suites, out=out, truth=args.truth, shard=_shard(args.shard), workers=workers)

    def progress(done: int, total: int, name: str) -> None:
        console.print(f"[dim]{done:4d}/{total}  {duration(time.monotonic() - begin):>12}  {name}[/]", highlight=False)

    rows = evaluate(model, plan, progress)
    if rows is None:
        console.print(f"shard {args.shard} is done; the report is written when all are, under {out}", highlight=False)
        return 0
    facts = {
        "command": f"worldline evaluate {args.world} --suite {args.suite}",
        "seconds": f"{time.monotonic() - begin:.0f}",
    }
    from worldline.evaluate.publish import publish

    page, table = publish(plan, rows, facts)
    console.print(table)
    console.print(f"[bold green]done[/] in {duration(time.monotonic() - begin)}; report: {page}", highlight=False)
    return 0


def adapter_of(name: str, device: str) -> WorldAdapter:
    """The adapter of what was named on the command line."""
    from worldline.evaluate.adapter import EngineAdapter, ReplayAdapter

    if name == "oracle":
        return ReplayAdapter()
    from worldline.cli.play import find_world
    from worldline.stream.engine import Engine

    world = find_world(name)
    return EngineAdapter(
        Engine.load(world, device=device), name="nano" if name in ("nano", "bundled") else Path(name).name
    )


def _shard(text: str) -> tuple[int, int]:
    """`0/2` as (0, 2)."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit()):
        raise WorldlineError(f"shard {text!r}; expected I/N, such as 0/2")
    return int(first), int(count)


def _list(console: Console) -> int:
    from rich.table import Table

    from worldline.evaluate.figures import FIGURES
    from worldline.evaluate.suites import ABOUT, PRESETS

    suites = Table("suite", "what happens", *PRESETS)
    for name, about in ABOUT.items():
        counts = (str(sum(e.count for e in entries if e.suite == name) or "") for entries in PRESETS.values())
        suites.add_row(name, about, *counts)
    figures = Table("figure", "unit", "better", "what it is")
    for f in FIGURES:
        figures.add_row(f.name, f.unit, f.better, f.about)
    console.print(suites)
    console.print(figures)
    return 0


def _self_test(console: Console, truth: Path) -> int:
    from worldline.evaluate.selftest import self_test

    found = self_test(truth)
    console.print(found.table())
    return 0 if found.passed else 1
