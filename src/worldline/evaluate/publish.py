"""All that a finished evaluation writes: results, table, page, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldline.evaluate.card import columns, markdown, told
from worldline.evaluate.learned import learned_figures
from worldline.evaluate.page import write_page
from worldline.evaluate.pose_tier import pose_figures
from worldline.evaluate.results import summarise, write_results
from worldline.evaluate.runner import Plan
from worldline.evaluate.score import Score
from worldline.evaluate.speed import read_bench, with_bench

if TYPE_CHECKING:
    from rich.table import Table


def publish(
    plan: Plan,
    rows: Mapping[str, Mapping[str, Score]],
    facts: Mapping[str, str],
    *,
    pose: bool = False,
    tier2: Mapping[str, Path] | None = None,
    bench: Path | None = None,
) -> tuple[Path, Table]:
    """Write results.json, per_episode.csv, card.md and report.html under the run; returns the page and a table to print.
    pose: estimate camera paths, too, which takes minutes; tier2: files of learned figures, see `learned`; bench: what
    `worldline bench --json` wrote for the same weights.

    Raises WorldlineError where a file of tier2 is not what it should be, BenchMismatch where bench is of other weights."""
    manifest = json.loads((plan.out / "manifest.json").read_text())
    size = (int(manifest["model"]["height"]), int(manifest["model"]["width"]))
    measured = read_bench(bench) if bench is not None else None
    learned = learned_figures(plan, tier2, *size) if tier2 else None
    results = summarise(rows, manifest, facts, pose_figures(plan, *size) if pose else None, learned)
    if measured is not None and bench is not None:
        results = with_bench(results, measured, bench.name)
    write_results(plan.out, results, rows)
    (plan.out / "card.md").write_text(markdown(results))
    return write_page(plan, results, rows), table(results)


def table(results: Mapping[str, Any]) -> Table:
    """Figures as rows, models as columns: fits a terminal."""
    from rich.table import Column, Table

    heads = (results["rows"][r] if r == "model" else r for r in results["figures"])
    made = Table(Column("figure", no_wrap=True), *heads)
    units = results["units"]
    for name in columns(results):
        label = f"{name} [{units[name]['unit']}]" if units[name]["unit"] else name
        cells = (told(f[name], units[name]["digits"]) if name in f else "" for f in results["figures"].values())
        made.add_row(label.replace("[", r"\["), *cells)
    return made
