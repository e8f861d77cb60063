"""`worldline evaluate`: how good a world is, measured against the simulator; `worldline compare`: two of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import Subcommands, command, duration

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.evaluate.adapter import WorldAdapter
    from worldline.evaluate.runner import Plan

EXAMPLES = """\
  worldline evaluate nano --suite smoke            the bundled world, a few minutes
  worldline evaluate runs/nano-demo --suite quick  stopped? the same command goes on where it was
  worldline evaluate nano --suite quick --shard 0/2 --out runs/q   and 1/2 elsewhere, with the same --out
  worldline evaluate oracle --suite smoke          the simulator itself: the harness must score at its ceiling
  worldline evaluate --export inputs --suite smoke start images and action logs for a model that runs elsewhere ...
  worldline evaluate --from-clips inputs --suite smoke    ... and its clips, written beside them
  worldline evaluate --open clips                  clips with action logs of their own, without a truth
  worldline evaluate nano --tier2 lpips=weights/lpips,clip=weights/clip    figures of networks you have the weights of
  worldline evaluate nano --bench bench.json       speed of the same weights (worldline bench --json) in the same row
  worldline evaluate nano --track tensorboard      figures and clips there, too
  worldline evaluate --self-test                   plant faults and see that the right figures react
  worldline evaluate --train-idm data/nano         train the model that reads keys from frames (ten minutes of a core)
  worldline evaluate runs/nano --stages all --suite stages     every stage of a conversion on the same episodes
  worldline evaluate --list                        suites, presets and figures
"""

COMPARE = """\
  worldline compare runs/evaluate-nano-quick runs/evaluate-mine-quick
  worldline compare A B --blind blind.html         a page for people: which follows the keys, which looks better?
  worldline compare A B --answers answers.json     what they said, un-blinded
"""

CLIPS_ACROSS = 6  # columns that fit a terminal


def add(subcommands: Subcommands) -> None:
    """Register the subcommands."""
    sub = command(subcommands, "evaluate", main, "measure a world against the simulator", EXAMPLES)
    sub.add_argument("world", metavar="WORLD", nargs="?", help="bundled (nano), world or run directory, or oracle")
    sub.add_argument(
        "--suite", default="smoke", metavar="PRESET", help="smoke, quick, full, or stages (default: smoke)"
    )
    sub.add_argument("--only", default="", metavar="S2,S3", help="these suites of the preset only")
    sub.add_argument("--episodes", type=int, default=0, metavar="N", help="at most N episodes of every script")
    sub.add_argument("--stages", metavar="A,B", help="stages of a run directory in one table: base,ar,dmd@2, or all")
    sub.add_argument("--steps", default="4,2", metavar="N,M", help="steps of its few-step stages (default: 4,2)")
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: runs/evaluate-<world>-<suite>)"
    )
    sub.add_argument("--truth", type=Path, default=Path("runs/truth"), metavar="DIR",
                     help="rendered truths, shared by all evaluations (default: runs/truth)")  # fmt: skip
    sub.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th episode from the I-th (default: 0/1)")
    sub.add_argument("--workers", type=int, metavar="N", help="processes beside this one (default: cores - 1)")
    sub.add_argument("--device", default="cpu", metavar="D", help="where the world runs (default: cpu)")
    sub.add_argument(
        "--export", type=Path, metavar="DIR", help="write what a model is given in every episode, and leave"
    )
    sub.add_argument("--from-clips", type=Path, metavar="DIR", help="score clips made elsewhere for exported episodes")
    sub.add_argument(
        "--open", type=Path, metavar="DIR", help="score clips with action logs of their own, without a truth"
    )
    sub.add_argument("--pose", action="store_true", help="estimate camera paths, too (needs the extra `pose`; minutes)")
    sub.add_argument(
        "--tier2", default="", metavar="NAME=PATH,..", help="figures of learned networks, with weights of yours: lpips, "
        "fvd, jedi, clip, aesthetic, vbench (what each needs: docs/evaluation.md)"
    )  # fmt: skip
    sub.add_argument(
        "--bench", type=Path, metavar="FILE", help="what `worldline bench --json` wrote for these weights (default: a "
        "bench*.json of theirs beside the results or in the world's folder)"
    )  # fmt: skip
    sub.add_argument("--track", default="", metavar="T,..", help="results to tensorboard, wandb, trackio, rerun, too")
    sub.add_argument(
        "--train-idm", type=Path, metavar="DATA", help="train the inverse-dynamics model on rendered clips, and leave"
    )
    sub.add_argument("--self-test", action="store_true", help="test the metrics by planted faults, with no world")
    sub.add_argument("--list", action="store_true", help="say what there is and leave")

    sub = command(subcommands, "compare", compare, "compare two evaluations, episode by episode", COMPARE)
    sub.add_argument("a", metavar="A", type=Path, help="directory of a finished evaluation")
    sub.add_argument("b", metavar="B", type=Path, help="directory of another")
    sub.add_argument("--json", type=Path, metavar="F", help="write the comparison as JSON")
    sub.add_argument(
        "--blind", type=Path, metavar="HTML", help="write a page that asks people, without saying which is which"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the page's order and sides (default: 0)")
    sub.add_argument(
        "--answers", type=Path, nargs="+", metavar="JSON", help="what such a page saved, of one or more people"
    )


def main(args: argparse.Namespace) -> int:
    """Evaluate one world."""
    import cv2
    from rich.console import Console

    cv2.setNumThreads(1)
    console = Console()
    if args.list:
        return _list(console)
    if args.self_test:
        return _self_test(console, args)
    if args.train_idm is not None:
        return _train_idm(console, args)
    if args.export is not None:
        return _export(console, args)
    if args.open is not None:
        return _open(console, args.open)
    if (args.world is None) == (args.from_clips is None):
        from worldline.schema import WorldlineError

        raise WorldlineError("expected one world, such as nano, or --from-clips DIR; see --help for what else there is")
    return _run(console, args)


def _run(console: Console, args: argparse.Namespace) -> int:
    import time

    from worldline.evaluate.runner import evaluate

    if args.stages is not None:
        return _stages(console, args)
    from worldline.evaluate import learned
    from worldline.evaluate.adapter import ReplayAdapter
    from worldline.evaluate.speed import find_bench, read_bench
    from worldline.track import parse

    # What can be wrong with the options is said before minutes are spent.
    tier2, track = learned.parse(args.tier2), parse(args.track)
    if args.bench is not None:
        read_bench(args.bench)
    begin = time.monotonic()
    if args.from_clips is not None:
        from worldline.evaluate.clips import ClipsAdapter

        model: WorldAdapter = ClipsAdapter(args.from_clips)
    else:
        model = adapter_of(args.world, args.device)
    plan = _plan(args, model.info().name)

    def progress(done: int, total: int, name: str) -> None:
        console.print(f"[dim]{done:4d}/{total}  {duration(time.monotonic() - begin):>12}  {name}[/]", highlight=False)

    try:
        rows = evaluate(model, plan, progress)
    finally:
        if isinstance(model, ReplayAdapter):
            model.close()
    if rows is None:
        console.print(
            f"shard {args.shard} is done; the report is written when all are, under {plan.out}", highlight=False
        )
        return 0
    facts = {
        "command": f"worldline evaluate {args.world or f'--from-clips {args.from_clips}'} --suite {args.suite}",
        "seconds": f"{time.monotonic() - begin:.0f}",
    }
    from worldline.evaluate.publish import publish

    bench = args.bench or find_bench(model.info().weights, (plan.out, plan.out.parent, Path(args.world or plan.out)))
    page, table = publish(plan, rows, facts, pose=args.pose, tier2=tier2, bench=bench)
    console.print(table)
    if track:
        from worldline.evaluate.tracked import tell

        tell(track, plan, page.parent / "track")
    console.print(f"[bold green]done[/] in {duration(time.monotonic() - begin)}; report: {page}", highlight=False)
    return 0


def _plan(args: argparse.Namespace, name: str) -> Plan:
    """What to play, of the command line; name: of what is evaluated, where no folder was named."""
    import os

    from worldline.evaluate.runner import Plan

    return Plan(
        preset=args.suite,
        suites=tuple(s for s in args.only.split(",") if s),
        episodes=args.episodes,
        out=args.out or Path("runs") / f"evaluate-{name}-{args.suite}",
        truth=args.truth,
        shard=_shard(args.shard),
        workers=max(0, (os.cpu_count() or 1) - 1) if args.workers is None else args.workers,
    )


def _stages(console: Console, args: argparse.Namespace) -> int:
    """Every stage of a run in one table."""
    from worldline.cli.stages import run
    from worldline.schema import WorldlineError

    if args.tier2 or args.bench or args.track or args.pose:
        raise WorldlineError("--tier2, --bench, --track and --pose are of one world; leave them out with --stages")
    if args.world is None:
        raise WorldlineError("--stages without a run directory; expected worldline evaluate RUN --stages all")
    return run(console, args, _plan(args, f"{Path(args.world).name}-stages"))


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


def compare(args: argparse.Namespace) -> int:
    """Two finished evaluations."""
    if args.blind is not None:
        return _blind(args)
    if args.answers is not None:
        return _answers(args)
    from rich.console import Console
    from rich.table import Table

    from worldline.cli.common import write_json
    from worldline.evaluate.compare import as_json
    from worldline.evaluate.compare import compare as compared

    found = compared(args.a, args.b)
    if args.json is not None:
        write_json(args.json, {"a": str(args.a), "b": str(args.b), "figures": as_json(found)})
    table = Table("figure", "A", "B", "B less A", "95 %", "p", "episodes", "better")
    for c in found:
        d = c.difference
        span = f"{d.low:+.3g} to {d.high:+.3g}" if d.n > 1 else "one episode"
        table.add_row(
            c.name,
            f"{c.a:.4g}",
            f"{c.b:.4g}",
            f"{d.value:+.3g}",
            span,
            f"{d.p:.3f}",
            str(d.n),
            c.better or "no difference",
        )
    Console().print(table)
    return 0


def _blind(args: argparse.Namespace) -> int:
    from rich.console import Console

    from worldline.evaluate.blind import write_blind

    count = write_blind(args.a, args.b, args.blind, seed=args.seed)
    Console().print(
        f"{count} pairs in {args.blind} ({args.blind.stat().st_size / 2**20:.1f} MiB); its answers.json comes back with "
        f"worldline compare {args.a} {args.b} --answers answers.json",
        highlight=False,
    )
    return 0


def _answers(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from worldline.cli.common import write_json
    from worldline.evaluate.answers import preferences
    from worldline.evaluate.blind import QUESTIONS

    found = preferences(args.a, args.b, args.answers)
    if args.json is not None:
        write_json(args.json, {"a": str(args.a), "b": str(args.b), "questions": [p.as_dict() for p in found]})
    table = Table("question", "A", "B", "no difference", "share of B", "95 %", "p", "episodes", "better")
    for p in found:
        span = f"{p.low:.2f} to {p.high:.2f}" if p.episodes > 1 else "one episode"
        table.add_row(
            QUESTIONS[p.question], str(p.a), str(p.b), str(p.ties), f"{p.share:.2f}", span, f"{p.p:.3f}", str(p.episodes),
            p.better or "no difference",
        )  # fmt: skip
    Console().print(table)
    return 0


def _shard(text: str) -> tuple[int, int]:
    """`0/2` as (0, 2)."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit()):
        from worldline.schema import WorldlineError

        raise WorldlineError(f"shard {text!r}; expected I/N, such as 0/2")
    return int(first), int(count)


def _export(console: Console, args: argparse.Namespace) -> int:
    from worldline.evaluate.clips import export_inputs
    from worldline.evaluate.suites import cases, preset
    from worldline.evaluate.truth import truth_of

    made = cases(preset(args.suite, tuple(s for s in args.only.split(",") if s)))
    folder = export_inputs([truth_of(case, args.truth) for case in made], args.export)
    console.print(f"{len(made)} start images and action logs in {folder}", highlight=False)
    return 0


def _open(console: Console, folder: Path) -> int:
    from rich.table import Table

    from worldline.evaluate.clips import open_domain
    from worldline.evaluate.open_domain import figures

    scores = open_domain(folder)
    rows = [figures(s) for s in scores]
    for at in range(0, len(rows), CLIPS_ACROSS):
        part = slice(at, at + CLIPS_ACROSS)
        table = Table("figure", *(s.case for s in scores[part]))
        for name in rows[0]:
            cells = [row[name] for row in rows[part]]
            if any(v is not None for v in cells):
                table.add_row(name, *("-" if v is None else f"{v:.3g}" for v in cells))
        console.print(table)
    return 0


def _train_idm(console: Console, args: argparse.Namespace) -> int:
    """The model that reads keys, from a data set: held-out accuracy on the way it comes and through the bundled codec."""
    from rich.table import Table

    from worldline.data.dataset import open_dataset
    from worldline.evaluate.idm_training import train_idm
    from worldline.models.registry import load_codec
    from worldline.nn.precision import inference_dtype
    from worldline.recipes.assets import located

    codec = load_codec(located("bundled", "codec")).freeze(inference_dtype("cpu"))

    def progress(step: int, steps: int, last: dict[str, float]) -> None:
        if step % 50 == 0:
            told = "  ".join(f"{k.removeprefix('keys/')} {v:.3f}" for k, v in last.items() if k.startswith("keys/"))
            console.print(f"[dim]{step:5d}/{steps}  {told}[/]", highlight=False)

    out = args.out or Path("runs") / "idm"
    card = train_idm(open_dataset(args.train_idm), codec, out, progress=progress, say=console.print)
    table = Table("held-out clips", "steps", *next(iter(card["heldout"].values()))["balanced_accuracy"])
    for name, found in card["heldout"].items():
        table.add_row(name, str(found["steps"]), *(f"{v:.3f}" for v in found["balanced_accuracy"].values()))
    console.print(table)
    console.print(f"[bold green]done[/] in {duration(card['seconds'])}; model: {out}", highlight=False)
    return 0


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


def _self_test(console: Console, args: argparse.Namespace) -> int:
    import os

    from worldline.evaluate.selftest import self_test

    workers = (os.cpu_count() or 1) if args.workers is None else args.workers
    found = self_test(args.truth, workers=workers if workers > 1 else 0)
    console.print(found.table())
    console.print("[bold green]all as expected[/]" if found.passed else "[bold red]not as expected[/]")
    return 0 if found.passed else 1
