"""Two evaluations side by side: which figures differ beyond chance, on the episodes both played.

Every figure is taken episode by episode and compared in pairs; what is had from several episodes together (a lag, a gain)
is taken from each one alone. Results of two protocols, metric versions or suites are refused.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.figures import BY_NAME, Figure
from worldline.evaluate.results import read_results
from worldline.evaluate.statistics import Difference, paired_difference
from worldline.schema import WorldlineError

SPEED = ("fps", "first_ms", "step_ms_p50", "step_ms_p95", "step_ms_p99")  # compared only on one machine


@dataclass(frozen=True)
class Compared:
    """One figure of A and B on common episodes. better: 'A', 'B', or '' where chance explains the difference."""

    name: str
    a: float
    b: float
    difference: Difference
    better: str


def compare(a: str | Path, b: str | Path) -> list[Compared]:
    """Run directories of two finished evaluations. Raises WorldlineError where they cannot be compared."""
    first, second = read_results(a), read_results(b)
    for key in ("protocol", "metric_version", "seeds"):
        if first[key] != second[key]:
            raise WorldlineError(
                f"{a} has {key.replace('_', ' ')} {first[key]} and {b} {second[key]}; evaluate both with one version"
            )
    left, right = _episodes(Path(a)), _episodes(Path(b))
    same_machine = first["stamp"]["machine"] == second["stamp"]["machine"]
    out = []
    for name, figure in BY_NAME.items():
        if name in SPEED and not same_machine:
            continue
        common = sorted(c for c in left.get(name, {}) if c in right.get(name, {}))
        if common:
            x, y = (np.array([side[name][c] for c in common]) for side in (left, right))
            found = paired_difference(x, y)
            out.append(Compared(name, float(x.mean()), float(y.mean()), found, _better(figure, x, y, found)))
    if not out:
        raise WorldlineError(f"{a} and {b} have no episode in common; evaluate both on one preset")
    return out


def _better(figure: Figure, x: np.ndarray, y: np.ndarray, found: Difference) -> str:
    """Which side is nearer to what is wanted, where the difference is told."""
    if figure.better in ("one", "zero"):
        wanted = 1.0 if figure.better == "one" else 0.0
        found = paired_difference(np.abs(x - wanted), np.abs(y - wanted))
        return ("A" if found.value > 0 else "B") if found.told else ""
    if not found.told:
        return ""
    return "B" if (found.value > 0) == (figure.better == "higher") else "A"


def as_json(found: list[Compared]) -> list[dict[str, Any]]:
    """Plain values."""
    return [
        {
            "figure": c.name, "a": c.a, "b": c.b, "difference": c.difference.value, "low": _finite(c.difference.low),
            "high": _finite(c.difference.high), "p": c.difference.p, "episodes": c.difference.n, "better": c.better,
        }
        for c in found
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _episodes(out: Path) -> dict[str, dict[str, float]]:
    """figure -> episode -> value of the model row."""
    found: dict[str, dict[str, float]] = {}
    with (out / "per_episode.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line["row"] == "model":
                for name in BY_NAME:
                    if line.get(name):
                        found.setdefault(name, {})[line["case"]] = float(line[name])
    return found
