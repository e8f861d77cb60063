"""What the subcommands share: subparsers with examples, progress of a pipeline, flat JSON files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from worldline.recipes.graph import Node
    from worldline.recipes.store import StageRecord

Subcommands = Any  # argparse's own type is private
Main = Callable[[argparse.Namespace], int | None]


def command(
    subcommands: Subcommands,
    name: str,
    main: Main,
    summary: str,
    examples: str = "",
    aliases: tuple[str, ...] = (),
) -> argparse.ArgumentParser:
    """A subcommand whose help ends with examples."""
    sub: argparse.ArgumentParser = subcommands.add_parser(
        name,
        aliases=aliases,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(main=main)
    return sub


def add_overrides(sub: argparse.ArgumentParser, what: str = "override one option") -> None:
    """The repeatable `--set KEY=VALUE`."""
    sub.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help=what)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write flat JSON atomically, making folders as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(json.dumps(data, indent=2) + "\n")
    tmp.replace(path)


def duration(seconds: float) -> str:
    """`2 min 05 s` or `3.1 s`."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


class ConsoleProgress:
    """One line for every stage of a pipeline as it is skipped, starts and ends."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def skipped(self, node: Node, record: StageRecord) -> None:
        """A finished stage with the same content hash."""
        self.console.print(
            f"[dim]✓ {node.name}: unchanged, done before ({duration(record.seconds)})[/]", highlight=False
        )

    def started(self, node: Node, resumed: bool) -> None:
        """A stage starts or goes on."""
        self.console.print(f"[bold]▶ {node.name}[/]{' (goes on from its checkpoint)' if resumed else ''}")

    def finished(self, node: Node, record: StageRecord) -> None:
        """A stage ended; a failed evaluation is said and passed over."""
        from rich.text import Text

        if record.status == "failed":
            self.console.print(Text(f"! {node.name} failed and is left out of the report: {record.error}", "yellow"))
            return
        losses = "  ".join(f"{k} {v:.4g}" for k, v in record.losses.items())
        self.console.print(f"[green]✓ {node.name}[/] {duration(record.seconds)}  [dim]{losses}[/]", highlight=False)
