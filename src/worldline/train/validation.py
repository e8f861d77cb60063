"""Measure the averaged weights every so often while a run trains, and keep those that were best.

What is measured is not training's business: a recipe hands in a callable. Measuring changes nothing that is learnt, and a
run that is stopped and resumed does not measure again what it has measured: equal steps have equal weights.

On disk, under the run: validation/history.json (every measurement), validation/best.safetensors (weights, with the
metric, its value and the step in the header).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline import dist
from worldline.schema import WorldlineError
from worldline.train.observers import Silent

FOLDER = "validation"


@dataclass(frozen=True)
class Measurement:
    """Figures of the weights after `step` steps, what else is worth keeping of them (plain data), and what it took."""

    step: int
    figures: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When, and by which figure weights are best. settings: whatever decides the figures beside the weights; a history of
    other settings is begun afresh."""

    every: int
    last: int  # the run's last step: measured in any case
    metric: str
    better: Literal["higher", "lower"] = "higher"
    settings: Mapping[str, Any] = field(default_factory=dict)


class Validator(Silent):
    """An observer of the trainer."""

    def __init__(
        self,
        run_dir: str | Path,
        schedule: Schedule,
        measure: Callable[[], tuple[Mapping[str, float], Mapping[str, Any]]],
        weights: Callable[[], dict[str, Tensor]],
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """measure: (figures, details) of the weights as they are averaged now; weights: those, whole. Of several processes all
        call both, and only the first writes."""
        self.folder, self.schedule = Path(run_dir) / FOLDER, schedule
        self.measure, self.weights, self.tell = measure, weights, tell
        self._history: dict[int, Measurement] | None = None

    def after_step(self, step: int) -> dict[str, float] | None:
        """Measure where it is time; a figure that is no number is left out of the log."""
        plan = self.schedule
        if step % plan.every and step != plan.last:
            return None
        if self._history is None:
            found = dist.share(dist.on_main(lambda: history(self.folder.parent, plan.settings)))
            assert found is not None, "rank 0 has one"
            self._history = found
        known = self._history.get(step)
        if known is None:
            known = self._measured(step)
        return {f"{FOLDER}/{k}": v for k, v in {**known.figures, "seconds": known.seconds}.items() if math.isfinite(v)}

    def _measured(self, step: int) -> Measurement:
        assert self._history is not None
        plan, began = self.schedule, time.monotonic()
        with torch.random.fork_rng():  # whatever draws from the global generators, training must not notice
            figures, details = self.measure()
        if plan.metric not in figures:
            raise WorldlineError(f"validate.metric {plan.metric!r}; expected one of {', '.join(sorted(figures))}")
        found = Measurement(step, dict(figures), details, round(time.monotonic() - began, 3))
        before = best_of(self._history.values(), plan.metric, plan.better)
        self._history[step] = found
        is_best = dist.share(best_of(self._history.values(), plan.metric, plan.better) is not before)
        if is_best:
            weights = self.weights()
            dist.on_main(lambda: self._keep(weights, found))
        dist.on_main(lambda: self._write(step))
        if self.tell is not None and dist.is_main():
            shown = "  ".join(f"{k} {v:.3g}" for k, v in figures.items())
            self.tell(f"step {step}: {shown}  ({found.seconds:.1f} s){'  best so far' if is_best else ''}")
        return found

    def _keep(self, weights: dict[str, Tensor], found: Measurement) -> None:
        plan = self.schedule
        header = {
            "metric": plan.metric, "better": plan.better, "value": repr(float(found.figures[plan.metric])),
            "step": str(found.step),
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        tmp = self.folder / "best.tmp"
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, tmp, metadata=header)
        os.replace(tmp, self.folder / "best.safetensors")

    def _write(self, step: int) -> None:
        """After the weights: a history that names a best has it."""
        assert self._history is not None
        data = {
            "settings": self.schedule.settings,
            "metric": self.schedule.metric,
            "better": self.schedule.better,
            "measured": [asdict(m) for _, m in sorted(self._history.items())],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        tmp = self.folder / "history.tmp"
        tmp.write_text(json.dumps(data) + "\n")
        os.replace(tmp, self.folder / "history.json")


def best_of(measured: Any, metric: str, better: Literal["higher", "lower"]) -> Measurement | None:
    """The best of some measurements, the earliest of equals; None of none that is a number."""
    told = [m for m in sorted(measured, key=lambda m: m.step) if math.isfinite(m.figures.get(metric, math.nan))]
    sign = 1 if better == "higher" else -1
    return max(told, key=lambda m: sign * m.figures[metric], default=None)


def history(run_dir: str | Path, settings: Mapping[str, Any] | None = None) -> dict[int, Measurement]:
    """Every measurement of a run by its step; none where there are none, or they were made with other settings."""
    path = Path(run_dir) / FOLDER / "history.json"
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    if settings is not None and data["settings"] != json.loads(json.dumps(settings)):
        return {}
    return {m["step"]: Measurement(**m) for m in data["measured"]}


def read_best(run_dir: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The best weights of a run and what they are ({metric, better, value, step}); None where none were kept."""
    path = Path(run_dir) / FOLDER / "best.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    return load_file(path), {**header, "value": float(header["value"]), "step": int(header["step"])}
