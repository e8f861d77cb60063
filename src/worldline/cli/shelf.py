"""`worldline models` and `worldline recipes`: what ships with the package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from worldline.cli.common import Subcommands, command


def add(subcommands: Subcommands) -> None:
    """Register the subcommands."""
    command(subcommands, "models", models, "list the bundled models with their cards and licences")
    command(subcommands, "recipes", recipes, "list the recipes that ship with the package")


def models(args: argparse.Namespace) -> int:
    """A table of the bundled model directories; the cards in full below it."""
    from rich.console import Console
    from rich.table import Table

    from worldline.recipes.assets import ASSETS, bundled_models

    console, found = Console(), bundled_models()
    table = Table("model", "kind", "MB", "licence", "made by", "quality")
    for directory in found:
        card = _read(directory / "card.json")
        size = sum(f.stat().st_size for f in directory.iterdir() if f.is_file()) / 1e6
        quality = card.get("quality") or {}
        table.add_row(
            directory.relative_to(ASSETS).as_posix(),
            str(_read(directory / "config.json").get("kind", "?")),
            f"{size:.1f}",
            str(card.get("licence", "?")),
            str(card.get("recipe", "?")),
            "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in quality.items()),
        )
    if not found:
        console.print(f"no bundled models in {ASSETS}; make them with `worldline run nano`", highlight=False)
    else:
        console.print(table)
    return 0


def recipes(args: argparse.Namespace) -> int:
    """A table of the recipe library."""
    import yaml
    from rich.console import Console
    from rich.table import Table

    library = Path(__file__).parents[1] / "recipes" / "library"
    table = Table("recipe", "what it does")
    for path in sorted(library.glob("*.yaml")):
        table.add_row(path.stem, " ".join(str(yaml.safe_load(path.read_text()).get("about", "")).split()))
    Console().print(table)
    return 0


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
