"""`worldline doctor`: is this machine in order, and what can it run?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.cli.common import Subcommands, command, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.stream.doctor import Check
    from worldline.stream.predict import Prediction

EXAMPLES = """\
  worldline doctor
  worldline doctor --quick                 checks alone: nothing is compiled, measured or predicted
  worldline doctor --json doctor.json      the same as data; the exit code is 1 where a check fails
"""
SCHEMA = "worldline-doctor-1"
SECONDS = 3.0  # of streaming the bundled world, to hold the prediction against
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "dim"}


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "doctor", main, "what works here, and what this machine can run", EXAMPLES)
    sub.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    sub.add_argument("--quick", action="store_true", help="checks alone, without compiling, measuring and predicting")
    sub.add_argument("--port", type=int, default=8000, metavar="N", help="port that the page would use (default: 8000)")
    sub.add_argument("--json", type=Path, metavar="F", help="write all of it as JSON")


def main(args: argparse.Namespace) -> int:
    """Check, measure, predict. 1 where a check fails."""
    import torch
    from rich.console import Console

    from worldline.stream.doctor import examine

    console = Console(highlight=False, soft_wrap=True)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    checks = []
    for check in examine(device, compiling=not args.quick, port=args.port):
        show(console, check)
        checks.append(check)
    predictions: list[Prediction] = []
    figures: dict[str, Any] = {}
    if not args.quick:
        made, figures, predictions = forecast(device)
        for check in made:
            show(console, check)
        checks += made
        tell(console, predictions)
    failed = sum(check.status == "FAIL" for check in checks)
    console.print(f"[bold red]{failed} checks failed[/]" if failed else "[green]in order[/]")
    if args.json is not None:
        rows = [asdict(p) | {"fits": p.fits, "realtime": p.realtime} for p in predictions]
        data = {"schema": SCHEMA, "failed": failed, "checks": [asdict(c) for c in checks], "predictions": rows}
        write_json(args.json, data | {"bench": figures})
    return 1 if failed else 0


def forecast(device: Any) -> tuple[list[Check], dict[str, Any], list[Prediction]]:
    """The bundled world streamed and predicted, with the prediction's error as a check, and the worlds one might run."""
    import torch

    from worldline.recipes.assets import bundled
    from worldline.stream.bench import bench
    from worldline.stream.doctor import Check
    from worldline.stream.engine import Engine
    from worldline.stream.machine import measure_rates, memory_bytes
    from worldline.stream.predict import known_worlds, measure_overhead, predict

    engine = Engine.load(bundled("world"), device=str(device))
    figures = bench(engine, seconds=SECONDS)
    rates, free = measure_rates(device, getattr(torch, engine.dtype)), float(memory_bytes(device)[1])
    spec, overhead = engine.spec, measure_overhead(device, engine.dtype)
    nano = predict(
        "bundled world", engine.model.config, engine.codec.config, engine.config, rates, overhead, free,
        dtype=engine.dtype,
    )  # fmt: skip
    streamed = Check(
        "bundled world",
        "PASS" if figures["realtime_factor"] >= 1 else "WARN",
        f"streams {figures['fps']:.0f} frames/s (its clock: {spec.fps:g}), first frames {figures['ttff_ms']:.0f} ms, action "
        f"to pixel p95 {figures['a2p_p95_ms']:.0f} ms, {figures['host_reads']} host reads and {figures['graph_breaks']} graph "
        "breaks a chunk",
        "" if figures["realtime_factor"] >= 1 else "the picture will move slowly; stop what else runs",
    )
    off = nano.fps / figures["fps"]
    told = Check(
        "prediction",
        "PASS" if 0.5 <= off <= 2 else "WARN",
        f"{nano.fps:.0f} frames/s predicted for it, {figures['fps']:.0f} measured: off by {100 * (off - 1):+.0f} %",
        ""
        if 0.5 <= off <= 2
        else "the machine was busy while it was measured, or differs much from those known: trust less",
    )
    others = [
        predict(name, *sizes, rates, overhead, free, dtype=engine.dtype) for name, sizes in known_worlds().items()
    ]
    return [streamed, told], figures, [nano, *others]


def show(console: Console, check: Check) -> None:
    """One line, and the mend below it."""
    console.print(f"[{COLOURS[check.status]}]{check.status}[/]  [bold]{check.name}[/]: {check.found}")
    if check.mend:
        console.print(f"      -> {check.mend}", markup=False)


def tell(console: Console, predictions: list[Prediction]) -> None:
    """The predictions as a table."""
    from rich.table import Table

    table = Table("world", "size", "frames/s", "its clock", "memory", "here")
    for p in predictions:
        verdict = "[green]in real time[/]" if p.realtime else "[yellow]slower than its clock[/]"
        verdict = verdict if p.fits else f"[red]does not fit {p.free / 2**30:.1f} GiB[/]"
        table.add_row(p.name, p.size, f"{p.fps:.3g}", f"{p.native_fps:g}", f"{p.memory / 2**30:.1f} GiB", verdict)
    console.print(table)
