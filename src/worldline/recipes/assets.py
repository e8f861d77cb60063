"""The models that ship with the package, and `bundled` in recipes."""

from __future__ import annotations

from pathlib import Path

from worldline.schema import WorldlineError

ASSETS = Path(__file__).parents[1] / "assets"
LINE = "nano"


def bundled(part: str) -> Path:
    """The directory of a bundled part: `codec`, `base`, `world`. Raises WorldlineError where it is absent."""
    directory = ASSETS / LINE / part
    if not (directory / "config.json").is_file():
        raise WorldlineError(f"the bundled {part} is missing ({directory}); reinstall, or run the recipe `nano`")
    return directory


def located(path: str, part: str) -> Path:
    """The directory `path` means in a recipe: `bundled`, or a model directory."""
    if path == "bundled":
        return bundled(part)
    if not (Path(path) / "config.json").is_file():
        raise WorldlineError(f"{part}: {path} is no model directory (no config.json); expected one, or `bundled`")
    return Path(path)


def bundled_models() -> list[Path]:
    """Every bundled model directory."""
    return sorted(path.parent for path in ASSETS.rglob("config.json"))
