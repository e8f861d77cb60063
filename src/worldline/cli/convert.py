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
  worldline convert style_lora.safetensors --base models/wan1b --merge --out models/wan1b-style    a LoRA into its base
  worldline convert runs/nano-demo/world --quantise int8 --out small     a world or model of ours with 8-bit layers
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
        choices=("worldline", "diffusers", "wan", "hunyuan"),
        default="worldline",
        help="worldline: what our commands read; diffusers: a transformer folder; wan, hunyuan: original names "
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
    sub.add_argument("--base", type=Path, metavar="MODEL", help="the checkpoint that a LoRA file changes (see --merge)")
    sub.add_argument("--merge", action="store_true", help="write that checkpoint with the LoRA added")
    sub.add_argument(
        "--quantise", choices=("int8", "fp8"), help="write a world or model of ours again with 8-bit linear layers"
    )
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
    from worldline.models.convert.adapters import find_adapter
    from worldline.models.published_vae import is_published

    if (adapter := find_adapter(args.file)) is not None:
        return _inspect_adapter(adapter, args.json)
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

    from worldline.models.published_vae import open_published

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


def _inspect_adapter(file: Path, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from worldline.models.convert.adapters import inspect_adapter

    found, console = inspect_adapter(file), Console()
    if as_json:
        console.print_json(json.dumps(found.as_data()))
        return 0
    rows = {
        "file": found.file,
        "made by": found.made_by,
        "model": "a LoRA: changes to a Wan transformer, not a model",
        "layers": f"{found.layers} in {found.blocks} blocks: {', '.join(f'{n} {part}' for part, n in found.parts.items())}",
        "rank": ", ".join(f"{rank} ({n} layers)" for rank, n in sorted(found.ranks.items())),
        "scale": found.scale,
        "weight": f"{found.parameters / 1e6:,.2f} M parameters, {', '.join(found.dtypes)}",
        "fits": ", ".join(found.fits) or "no published size",
        "licence": found.licence,
        "use": _how_to_merge(file),
        "verdict": f"{len(found.unknown)} keys are not understood" if found.unknown else "every key is explained",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    for key in found.unknown:
        console.print(f"[bold red]unexplained[/] {key}", highlight=False, soft_wrap=True)
    return 0


def _how_to_merge(file: Path) -> str:
    return f"worldline convert {file} --base MODEL --merge --out DIR"


def _merge_adapter(args: argparse.Namespace, adapter: Path) -> int:
    from rich.console import Console

    from worldline.models.convert.adapters import inspect_adapter, merge
    from worldline.schema import WorldlineError

    if args.base is None or not args.merge:
        fits = " or ".join(inspect_adapter(adapter).fits) or "no published size"
        raise WorldlineError(
            f"{adapter} is a LoRA (of {fits}): changes to a model, not a model; to write its base with it added, say "
            f"{_how_to_merge(adapter)}"
        )
    if args.leave_out:
        raise WorldlineError(f"--leave-out {args.leave_out[0]} while merging; expected it in a second conversion")
    report = merge(
        adapter, args.base, args.out,
        to=args.to, dtype=args.dtype, licence=args.licence, origin=args.origin, num_heads=args.heads,
    )  # fmt: skip
    console = Console()
    console.print(
        f"{adapter.name} merged into {report.file} ({report.layout}) -> {args.to} in {args.out}", highlight=False
    )
    if args.licence is None:
        console.print(f"licence of the base: {report.licence}; the adapter may have its own", highlight=False)
    return 0


def convert(args: argparse.Namespace) -> int:
    """Convert with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from worldline.models.convert import convert as write
    from worldline.models.convert.adapters import find_adapter
    from worldline.models.published_vae import convert_published, is_published
    from worldline.schema import WorldlineError

    if args.quantise is not None:
        return _quantise(args)
    if (adapter := find_adapter(args.file)) is not None:
        return _merge_adapter(args, adapter)
    if args.base is not None or args.merge:
        raise WorldlineError(
            f"--base and --merge are for a LoRA, {args.file} is none; expected a safetensors file of one"
        )

    if is_published(args.file) and args.to == "worldline":
        codec = convert_published(args.file, args.out, args.licence, args.origin)
        sizes = f"{codec.latent_channels} channels, {codec.spatial} x {codec.spatial} pixels a cell"
        Console().print(f"a video autoencoder, {sizes} -> {args.out}", highlight=False)
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


def _quantise(args: argparse.Namespace) -> int:
    from rich.console import Console

    from worldline.schema import WorldlineError
    from worldline.stream.quantised import write_quantised

    others = ("base", "merge", "leave_out", "dtype", "licence", "origin", "heads")
    if args.to != "worldline" or (given := [name for name in others if getattr(args, name)]):
        what = f"--to {args.to}" if args.to != "worldline" else f"--{given[0].replace('_', '-')}"
        raise WorldlineError(
            f"{what} with --quantise; expected a world or model of ours as it is: convert first, then quantise"
        )
    done = write_quantised(args.file, args.out, args.quantise)
    sizes = f"{done.bytes_before / 1e6:,.1f} MB in bfloat16 -> {done.bytes_after / 1e6:,.1f} MB"
    Console().print(
        f"{len(done.layers)} layers in {args.quantise}, {len(done.skipped)} as they were, {sizes} -> {args.out}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
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
