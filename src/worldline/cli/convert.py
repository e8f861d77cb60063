"""`worldline inspect-checkpoint` and `worldline convert`: published weights in and out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.cli.common import Subcommands, command

if TYPE_CHECKING:
    from rich.table import Table

    from worldline.models.convert.report import CheckpointReport

INSPECT = """\
  worldline inspect-checkpoint model.pt                      what it is, its sizes, every key that is unexplained
  worldline inspect-checkpoint Wan2.1-T2V-1.3B --json        a folder or a shard index works as well
"""
CONVERT = """\
  worldline convert Wan2.1-T2V-1.3B --out models/wan1b       original or diffusers weights to a worldline model
  worldline convert Wan2.1-T2V-1.3B-Diffusers/vae --out models/wan2.1-vae    its autoencoder
  worldline convert Wan2.1-T2V-1.3B/Wan2.1_VAE.pth --out models/wan2.1-vae   the same from Wan's own file
  worldline convert model.pt --out models/wm --which raw     a Self-Forcing or minWM file; EMA weights if not told
  worldline convert models/wan1b --out for-diffusers --to diffusers --dtype bfloat16
  worldline convert models/wm --out plain --to wan --leave-out camera --licence Apache-2.0
"""


def add(subcommands: Subcommands) -> None:
    """Register the subcommands."""
    sub = command(subcommands, "inspect-checkpoint", inspect, "say what a checkpoint of other projects is", INSPECT)
    _add_source(sub)
    sub.add_argument("--json", action="store_true", help="print the whole report as JSON")
    sub = command(subcommands, "convert", convert, "convert a checkpoint of other projects, or ours for them", CONVERT)
    _add_source(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    sub.add_argument(
        "--to",
        choices=("worldline", "diffusers", "wan"),
        default="worldline",
        help="worldline: what our commands read; diffusers: a transformer folder; wan: original names "
        "(default: worldline)",
    )
    sub.add_argument(
        "--leave-out",
        action="append",
        default=[],
        choices=("camera", "action", "motion"),
        help="drop a part that the target has no place for; may be repeated",
    )
    sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: as in the file)")
    sub.add_argument("--licence", metavar="TEXT", help="terms for the card, where the file does not state them")
    sub.add_argument("--origin", metavar="TEXT", help="where the file comes from, for the card (default: its name)")


def _add_source(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", type=Path, metavar="FILE", help="weights file, shard index or model folder")
    sub.add_argument(
        "--which", choices=("ema", "raw"), default="ema", help="ema: averaged weights if there are any (default: ema)"
    )
    sub.add_argument("--heads", type=int, metavar="N", help="number of attention heads, where nothing tells it")


def inspect(args: argparse.Namespace) -> int:
    """Print the report."""
    from rich.console import Console

    from worldline.models.convert import inspect as look
    from worldline.models.wan_vae.published import is_published

    if is_published(args.file):
        return _inspect_autoencoder(args.file, args.json)
    report, console = look(args.file, which=args.which, num_heads=args.heads), Console()
    if args.json:
        console.print_json(json.dumps(report.as_data()))
    else:
        console.print(_table(report))
        for title, keys in (
            ("unexplained", report.unknown),
            ("missing", report.missing),
            ("wrong shape", report.misshapen),
        ):
            for key in keys:
                console.print(f"[bold red]{title}[/] {key}", highlight=False, soft_wrap=True)
    return 0


def _inspect_autoencoder(file: Path, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from worldline.models.wan_vae.published import open_published

    found, console = open_published(file), Console()
    parameters = sum(info.count for info in found.infos.values())
    rows = {
        "file": f"{file.name} ({found.source.container})",
        "made by": found.layout,
        "model": f"{found.title}, {found.variant or 'no published size'}",
        "tensors": str(len(found.infos)),
        "weight": f"{parameters / 1e6:,.1f} M parameters",
        "verdict": f"not convertible: {found.faults}" if found.faults else "every key is explained",
    }
    if as_json:
        console.print_json(json.dumps(rows))
        return 0
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    return 0


def convert(args: argparse.Namespace) -> int:
    """Convert with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from worldline.models.convert import convert as write
    from worldline.models.wan_vae.published import convert_published, is_published

    if is_published(args.file) and args.to == "worldline":
        codec = convert_published(args.file, args.out, args.licence, args.origin)
        sizes = f"{codec.latent_channels} channels, {codec.spatial} x {codec.spatial} pixels a cell"
        Console().print(f"an autoencoder of Wan's latents, {sizes} -> {args.out}", highlight=False)
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("converting", total=None)
        report = write(
            args.file,
            args.out,
            to=args.to,
            which=args.which,
            leave_out=args.leave_out,
            dtype=args.dtype,
            num_heads=args.heads,
            licence=args.licence,
            origin=args.origin,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{report.layout}, {_set_name(report.chosen)} -> {args.to} in {args.out}", highlight=False)
    for line in [*report.notes, *([] if args.licence else [f"licence: {report.licence}"])]:
        console.print(line, highlight=False)
    return 0


def _table(report: CheckpointReport) -> Table:
    from rich.table import Table

    cfg = report.config
    heads = str(cfg.num_heads) if report.heads_known else "unknown (give --heads)"
    rows = {
        "file": f"{report.file} ({report.container})",
        "made by": report.layout + (f", wrapped in {' '.join(report.wrappers)}" if report.wrappers else ""),
        "model": f"{report.family}, {report.variant or 'no published size'}",
        "sizes": f"width {cfg.dim}, ffn {cfg.ffn_dim}, layers {cfg.num_layers}, heads {heads}, channels {cfg.in_channels}",
        "tensors": f"{report.tensors} ({', '.join(f'{n} {role}' for role, n in report.roles.items())})",
        "weight": f"{report.parameters / 1e6:,.1f} M parameters, {report.nbytes / 1e9:.2f} GB, {', '.join(report.dtypes)}",
        "sets": "; ".join(f"{_set_name(s.name)}: {s.what}, {s.tensors}" for s in report.sets),
        "chosen": _set_name(report.chosen),
        "licence": report.licence,
        "verdict": f"not convertible: {report.faults}" if report.faults else "every key is explained",
    }
    if report.notes:
        rows["note"] = "\n".join(report.notes)
    if report.extras:
        rows["also holds"] = ", ".join(report.extras)
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _set_name(name: str) -> str:
    return name or "the only set"
