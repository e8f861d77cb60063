"""`worldline plan`: what a recipe would take, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.cli.common import Subcommands, add_overrides, command

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.recipes.planning import RecipePlan

EXAMPLES = """\
  worldline plan nano-demo --device cpu          the bundled line on this kind of machine
  worldline plan wan-1.3b --device h100          which stages fit one H100, and what would help
  worldline plan wan-1.3b-node --devices 8       a node of eight
  worldline plan my.yaml --device mi300x:192:1307  a device by its memory in GB and dense bf16 TFLOPS
  worldline plan wan-1.3b --set rollout.chunk=1 --set rollout.steps=2 --json
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommand."""
    sub = command(subcommands, "plan", main, "memory, hours and disk of a recipe, without loading weights", EXAMPLES)
    sub.add_argument("recipe", metavar="RECIPE", help="library name, path to a .yaml, or a run directory")
    sub.add_argument(
        "--device",
        default="h200",
        metavar="NAME",
        help="h200 (default), b200, h100, a100, a100-40g, l40s, 4090, cpu, or NAME:MEMORY_GB:TFLOPS",
    )
    sub.add_argument("--devices", type=int, default=1, metavar="N", help="how many train together (default: 1)")
    sub.add_argument(
        "--utilisation",
        type=float,
        metavar="SHARE",
        help="share of the device's speed that training gets (default: 0.4)",
    )
    add_overrides(sub)
    sub.add_argument("--json", action="store_true", help="print the plan as JSON")


def main(args: argparse.Namespace) -> int:
    """Plan."""
    from rich.console import Console

    from worldline.recipes.devices import parse_device
    from worldline.recipes.load import load_recipe
    from worldline.recipes.planning import plan_recipe

    recipe = Path(args.recipe)
    recipe = recipe / "recipe.yaml" if (recipe / "recipe.yaml").is_file() else recipe
    resolved = load_recipe(recipe if recipe.is_file() else args.recipe, args.overrides)
    found = plan_recipe(resolved, parse_device(args.device), devices=args.devices, utilisation=args.utilisation)
    console = Console()
    if args.json:
        console.print_json(json.dumps(as_data(found)))
    else:
        show(console, found, resolved.about)
    return 0


def as_data(plan: RecipePlan) -> dict[str, Any]:
    """The plan as plain data: bytes, operations, seconds."""
    from worldline.recipes.builder import to_data

    data: dict[str, Any] = to_data(plan)
    for stage, row in zip(plan.stages, data["stages"], strict=True):
        row.update(peak=stage.peak, parameters=stage.parameters, trained=stage.trained)
    return {**data, "disk": plan.disk}


def show(console: Console, plan: RecipePlan, about: str) -> None:
    """Tables, then what is in the way."""
    from rich.table import Table

    from worldline.recipes import host

    device, clip = plan.device, plan.clip
    console.print(f"[bold]{plan.recipe}[/]  {about}", highlight=False)
    console.print(
        f"on {plan.devices} x {device.name} ({device.memory / 2**30:.0f} GiB, {device.tflops:g} TFLOPS at "
        f"{plan.utilisation:.0%}); clips of {clip['latents']} latents x {clip['tokens']} tokens = "
        f"{clip['latents'] * clip['tokens']:,} tokens\n",
        highlight=False,
    )
    table = Table(
        "stage", *(_right(h) for h in ("trained", "of params", "batch", "per step", "steps", "time")), box=None
    )
    for s in plan.stages:
        table.add_row(
            s.name,
            count(s.trained),
            count(s.parameters),
            str(s.global_batch),
            operations(s.flops_per_step),
            f"{s.steps:,}",
            hours(s.seconds),
        )
    console.print(table, "")
    kinds = {
        "weights": "weights",
        "gradients": "grads",
        "optimizer": "moments",
        "ema": "ema",
        "activations": "activ.",
        "caches": "k, v",
    }
    beside = any(kind in s.memory for s in plan.stages for kind in host.KINDS)
    titles = [*kinds.values(), *(["process"] if beside else [])]
    table = Table("GiB", *(_right(title) for title in titles), _right("peak"), "fits", box=None)
    for s in plan.stages:
        parts = [_gib(s.memory.get(kind, 0.0)) for kind in kinds]
        parts += [_gib(sum(s.memory.get(kind, 0.0) for kind in host.KINDS))] if beside else []
        table.add_row(s.name, *parts, f"[bold]{_gib(s.peak)}[/]", "[green]yes[/]" if s.fits else "[bold red]no[/]")
    console.print(table, "")
    for s in plan.stages:
        if len(s.roles) > 2:
            networks = ", ".join(f"{r.name} (trained)" if r.trained else r.name for r in s.roles)
            console.print(f"       {s.name} holds {networks}", highlight=False)
    _disk(console, plan)
    _advice(console, plan)
    total = sum(s.seconds for s in plan.stages)
    console.print(
        f"[bold]in all {hours(total)}[/] of {plan.devices} x {device.name}"
        + (f", {hours(total * plan.devices)} of one device" if plan.devices > 1 else "")
        + f", {size(plan.disk)} of disk; encoding and evaluation not counted",
        highlight=False,
    )


def _disk(console: Console, plan: RecipePlan) -> None:
    each = plan.latent_bytes + plan.text_bytes
    clips = "clips: not there yet" if plan.clips is None else f"{plan.clips:,} clips: {size(plan.clips * each)}"
    console.print(
        f"disk   {clips} ({size(plan.latent_bytes)} of latents and {size(plan.text_bytes)} of text each, the text "
        "at most and once for equal prompts; held in the computer's memory while training)",
        highlight=False,
        soft_wrap=True,
    )
    kept = [f"{s.name} {size(sum(s.disk.values()))}" for s in plan.stages]
    console.print(f"       checkpoints, models, trajectories: {', '.join(kept)}\n", highlight=False, soft_wrap=True)


def _advice(console: Console, plan: RecipePlan) -> None:
    """What does not fit, stages with the same mends together; then the warnings."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for stage in plan.stages:
        if not stage.fits:
            alike.setdefault(stage.mends, []).append(stage.name)
    for mends, names in alike.items():
        verb = "does" if len(names) == 1 else "do"
        console.print(
            f"[bold red]{', '.join(names)}[/] {verb} not fit {plan.device.name}; what would mend it:", highlight=False
        )
        for mend in mends:
            console.print(f"       {mend}", highlight=False, markup=False, soft_wrap=True)
    for stage in plan.stages:
        for warning in stage.warnings:
            console.print(f"[yellow]{stage.name}[/] {warning}", highlight=False, soft_wrap=True)


def _right(title: str) -> Any:
    from rich.table import Column

    return Column(title, justify="right")


def _gib(amount: float) -> str:
    return f"{amount / 2**30:.1f}" if amount >= 0.05 * 2**30 else f"{amount / 2**30:.2f}" if amount else "-"


def count(number: float) -> str:
    """`1.42 B` parameters."""
    return _scaled(number, (("B", 1e9), ("M", 1e6), ("k", 1e3)))


def operations(number: float) -> str:
    """`1.07 PFLOP`."""
    return _scaled(number, (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)))


def size(amount: float) -> str:
    """`4.2 MB`, of 10^6 bytes."""
    return _scaled(amount, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)))


def hours(seconds: float) -> str:
    """`12.3 h`, `4.0 min` or `9 days`."""
    if seconds >= 72 * 3600:
        return f"{seconds / 86400:,.1f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _scaled(number: float, units: tuple[tuple[str, float], ...]) -> str:
    for unit, scale in units:
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.3g}"
