"""`worldline bench` beside quality: the speed of the very weights that were evaluated, in the same row of the table.

A file is taken only where weights, precision and steps are those of the evaluation: quality of one configuration beside the
speed of another is how tables mislead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from worldline.schema import WorldlineError
from worldline.stream.bench import SCHEMA

# column -> (key of the bench file, unit, better, digits, what it is)
COLUMNS = {
    "bench_fps": (
        "fps",
        "1/s",
        "higher",
        1,
        "frames a second of a stream, later 70 % of its chunks, no pacing (bench)",
    ),
    "bench_first_ms": ("ttff_ms", "ms", "lower", 0, "from asking for a session to its first generated pixels (bench)"),
    "a2p_p50_ms": (
        "a2p_p50_ms",
        "ms",
        "lower",
        0,
        "from an input to the first frame that depends on it, median (bench)",
    ),
    "a2p_p95_ms": ("a2p_p95_ms", "ms", "lower", 0, "the same, 95th percentile (bench)"),
}
WHERE = ("device", "cores", "threads", "load_average", "torch", "date", "commit", "dtype", "quantised")


class BenchMismatch(WorldlineError):
    """A bench file of other weights, another precision or number of steps, or of another kind."""


def read_bench(path: str | Path) -> dict[str, Any]:
    """The flat figures of `worldline bench --json`. Raises BenchMismatch where the file is something else."""
    path = Path(path)
    if not path.is_file():
        raise BenchMismatch(f"{path} is no file; expected the output of worldline bench --json FILE")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise BenchMismatch(f"{path} is no JSON ({error}); expected the output of worldline bench --json") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = found.get("schema") if isinstance(found, dict) else None
        raise BenchMismatch(f"{path} has schema {schema!r}; expected {SCHEMA}; run worldline bench --json again")
    return found


def weights_of(bench: Mapping[str, Any]) -> str:
    """What an evaluation of the benched configuration is stamped with."""
    quantised = f"-{bench['quantised']}" if bench.get("quantised") else ""
    return f"{bench['weights']}-{bench['dtype']}-{bench['steps']}{quantised}"


def with_bench(results: Mapping[str, Any], bench: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Results with the columns of a bench file in the model's row, and where it was measured. Raises BenchMismatch where it
    is not of the evaluated weights."""
    model = results["model"]
    if weights_of(bench) != model["weights"]:
        raise BenchMismatch(
            f"{source} measured {weights_of(bench)}, the evaluation is of {model['weights']}; run worldline bench --json "
            "with the evaluated world, or leave --bench out"
        )
    row, units = dict(results["figures"]["model"]), dict(results["units"])
    for name, (key, unit, better, digits, about) in COLUMNS.items():
        value = bench.get(key)
        if value is None:
            continue
        row[name] = {
            "value": round(float(value), 6), "low": None, "high": None, "n": int(bench["chunks"]), "status": "ok",
            "reason": "",
        }  # fmt: skip
        units[name] = {"unit": unit, "better": better, "digits": digits, "about": about, "tier": 0, "column": True}
    where = {key: bench[key] for key in WHERE if bench.get(key) is not None}
    said = {"source": source, "seconds": bench.get("seconds"), "where": where}
    return {**results, "figures": {**results["figures"], "model": row}, "units": units, "bench": said}


def find_bench(weights: str, folders: Iterable[Path]) -> Path | None:
    """The newest bench*.json in these folders that is of the weights; others are passed over."""
    found = []
    for folder in dict.fromkeys(folders):
        for path in folder.glob("bench*.json") if folder.is_dir() else ():
            try:
                if weights_of(read_bench(path)) == weights:
                    found.append(path)
            except (BenchMismatch, KeyError):
                continue
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def told_where(bench: Mapping[str, Any]) -> str:
    """One line of where the speed was measured."""
    w = bench["where"]
    parts = [str(w.get("device", "?"))]
    parts += [f"{w[key]} {key}" for key in ("cores", "threads") if key in w]
    if "load_average" in w:
        parts.append(f"load {w['load_average']:.1f}")
    parts += [f"torch {w['torch']}"] if "torch" in w else []
    parts += [str(w[key]) for key in ("dtype", "quantised", "commit", "date") if key in w]
    return ", ".join(parts)
