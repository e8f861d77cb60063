"""From scores to results: every figure of every row with its interval, the stamp, the worst episodes; JSON and CSV.

`results.json` has a stable schema (SCHEMA); a change of meaning raises its number.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.figures import BY_NAME, FIGURES, Rows
from worldline.evaluate.learned import NEEDS, as_columns, skipped
from worldline.evaluate.references import ROWS
from worldline.evaluate.score import METRIC_VERSION, Score
from worldline.evaluate.store import write_json
from worldline.evaluate.suites import PROTOCOL, seeds_hash
from worldline.schema import WorldlineError

SCHEMA = "worldline.evaluation/1"
TOLD_OF_MODEL = (
    "fps",
    "first_ms",
    "step_ms_p50",
    "step_ms_p95",
    "step_ms_p99",
    "recovery",
    "skill_1s",
    "skill_4s",
)  # not of others


def summarise(
    rows: Mapping[str, Mapping[str, Score]],
    manifest: Mapping[str, Any],
    facts: Mapping[str, str],
    pose: Mapping[str, Any] | None = None,
    learned: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of results.json. manifest: as the runner wrote it; facts: the stamp's further lines (recipe, command);
    pose, learned: tiers 1 and 2, where they were asked for."""
    learned = learned or {name: skipped(name) for name in NEEDS}
    extra, extra_units = as_columns(learned)
    figures: dict[str, dict[str, Any]] = {}
    for row in ("model", *(r for r in ROWS if r in rows)):
        scores = list(rows[row].values())
        figures[row] = {
            f.name: _plain(f.of(scores, rows)) for f in FIGURES if row == "model" or f.name not in TOLD_OF_MODEL
        } | extra.get(row, {})
    model = list(rows["model"].values())
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "metric_version": METRIC_VERSION,
        "preset": manifest["preset"],
        "suites": manifest["suites"],
        "suite_hash": manifest["suite_hash"],
        "seeds": seeds_hash(),
        "model": manifest["model"],
        "stamp": {**stamp(), **facts},
        "episodes": len(model),
        "frames": int(sum(len(s.series["yaw"]) for s in model)),
        "coverage": {row: len(scores) for row, scores in rows.items()},
        "rows": {"model": manifest["model"]["name"], **{r: t for r, t in ROWS.items() if r in rows}},
        "figures": figures,
        "units": {
            f.name: {"unit": f.unit, "better": f.better, "digits": f.digits, "about": f.about, "tier": 0}
            for f in FIGURES
        }
        | extra_units,
        "tiers": {
            "1": pose or {"status": "skipped", "reason": "camera paths were not asked for (--pose)"},
            **learned,
        },
        "lag_by_phase": lag_by_phase(rows, int(manifest["model"]["frames_per_step"])),
        "worst": worst(rows),
    }


def stamp() -> dict[str, str]:
    """Where and when: everything a reader needs to know whether two rows may be compared."""
    from importlib.metadata import version

    import torch

    return {
        "worldline": version("worldline"),
        "git": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str:
    """The commit this package is run from, with `+` where files differ from it; empty where it is no checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""


def processor() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or sys.platform


def lag_by_phase(rows: Rows, frames_per_step: int) -> list[float | None]:
    """Correlation-weighted lag of yaw at each place within a chunk: a model that answers only at chunk borders, or shows a
    whole chunk the controls of its end, has a slope here. None where it cannot be had."""
    scores = [s for s in rows["model"].values() if s.suite == "S2" and s.variant == "yaw"]
    if not scores or frames_per_step < 2:
        return []
    lags = range(-frames_per_step, frames_per_step + 5)
    out: list[float | None] = []
    for phase in range(frames_per_step):
        best, found = 0.0, None
        for lag in lags:
            pairs = [
                (s.series["true_yaw"][t - lag], s.series["yaw"][t])
                for s in scores
                for t in range(phase, len(s.series["yaw"]), frames_per_step)
                if 0 <= t - lag < len(s.series["yaw"])
            ]
            u, y = np.array(pairs).T
            corr = float(np.corrcoef(u, y)[0, 1]) if u.std() > 0 and y.std() > 0 else 0.0
            if abs(corr) > best:
                best, found = abs(corr), float(lag)
        out.append(found if best >= 0.3 else None)
    return out


def worst(rows: Rows, count: int = 10) -> list[dict[str, Any]]:
    """The episodes farthest below the replay, by mean tolerant PSNR."""
    scored = [(float(s.series["tolerant"][1:].mean()), s) for s in rows["model"].values()]
    scored.sort(key=lambda pair: pair[0])
    return [{"case": s.case, "suite": s.suite, "split": s.split, "tolerant": round(v, 3)} for v, s in scored[:count]]


def write_results(out: Path, results: Mapping[str, Any], rows: Rows) -> None:
    """results.json and per_episode.csv."""
    write_json(out / "results.json", results)
    tmp = out / "per_episode.csv.tmp"
    with tmp.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "case", "suite", "variant", "split", *BY_NAME])
        for row, scores in rows.items():
            table = {f.name: f.by_case(list(scores.values()), rows) for f in FIGURES}
            for case, s in scores.items():
                cells = [table[name].get(case) for name in BY_NAME]
                writer.writerow(
                    [row, case, s.suite, s.variant, s.split, *("" if c is None else f"{c:.6g}" for c in cells)]
                )
    os.replace(tmp, out / "per_episode.csv")


def read_results(path: str | Path) -> dict[str, Any]:
    """results.json of a run directory, or the file itself. Raises WorldlineError where it is missing or of another schema."""
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise WorldlineError(f"{path} has no results.json; run `worldline evaluate` with --out {path} to its end first")
    found: dict[str, Any] = json.loads(file.read_text())
    if found.get("schema") != SCHEMA:
        raise WorldlineError(f"{file} has schema {found.get('schema')!r}; expected {SCHEMA}; evaluate again")
    return found


def _plain(figure: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan."""
    return {
        k: (None if isinstance(v, float) and not np.isfinite(v) else round(v, 6) if isinstance(v, float) else v)
        for k, v in figure.items()
    }
