"""From the measurements of training runs to what a study finds: figures with intervals, differences, and whether they go the
way that minWM reports. Every sentence is made of the numbers.

An interval is a bootstrap over both seeds and episodes: seeds are drawn with replacement, episodes likewise and alike for
every run, so that two runs are compared on the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from worldline.evaluate.statistics import ALPHA
from worldline.evaluate.validation import FIGURES as VALIDATED
from worldline.evaluate.validation import Validation
from worldline.train.validation import Measurement

SCHEMA = "worldline.ablation/1"
DRAWS = 200
FIGURES = {
    "yaw_corr": VALIDATED["yaw_corr"],
    "yaw_gain": VALIDATED["yaw_gain"],
    "cross_talk": VALIDATED["cross_talk"],
    "psnr": VALIDATED["psnr"],
    "camera_use": (
        "%",
        "higher",
        "growth of the velocity error of held-out clips under other clips' cameras; 0: ignored",
    ),
}
JUDGED = ("yaw_corr", "camera_use")  # the figure that a study is judged by; the second where the first tells nothing
Verdict = Literal["agrees", "disagrees", "not told", "missing"]


@dataclass(frozen=True)
class Run:
    """A finished training run: what it was, and what was measured of it."""

    name: str
    level: str
    batch: int
    seed: int
    studies: tuple[str, ...]
    measured: Sequence[Measurement]
    seconds: float
    losses: Sequence[tuple[int, float]]

    def to_data(self) -> dict[str, Any]:
        """Plain JSON; the tracks behind the figures stay with the run."""
        return {
            "name": self.name, "level": self.level, "batch": self.batch, "seed": self.seed,
            "studies": list(self.studies), "seconds": self.seconds,
            "validation_seconds": round(sum(m.seconds for m in self.measured), 1),
            "losses": [[step, round(loss, 5)] for step, loss in self.losses],
            "measured": [
                {"step": m.step, "figures": {k: round(v, 5) for k, v in m.figures.items()}} for m in self.measured
            ],
        }  # fmt: skip

    def at(self, step: int) -> Measurement | None:
        """What was measured after `step` steps."""
        return next((m for m in self.measured if m.step == step), None)


class Sample:
    """The measurements of one setting, one a seed, with the bootstrap of every figure."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.by_seed = [_figures(m) for m in measurements]
        self._draws = _bootstrap(measurements)

    def figure(self, name: str) -> dict[str, Any] | None:
        """{value, low, high, by_seed}; None where it was not measured."""
        if any(name not in f for f in self.by_seed):
            return None
        values = [f[name] for f in self.by_seed]
        return {**_interval(float(np.mean(values)), self._draws[name]), "by_seed": [round(v, 5) for v in values]}

    def less(self, other: Sample, name: str) -> dict[str, Any] | None:
        """This one's figure less the other's: {value, low, high, told}."""
        mine, theirs = self.figure(name), other.figure(name)
        if mine is None or theirs is None:
            return None
        found = _interval(mine["value"] - theirs["value"], self._draws[name] - other._draws[name])
        return {**found, "told": bool(found["low"] > 0 or found["high"] < 0)}

    def to_data(self, label: str, value: float) -> dict[str, Any]:
        """A point of a study."""
        figures = {name: self.figure(name) for name in FIGURES}
        return {"label": label, "value": value, "seeds": len(self.by_seed), "figures": figures}


def study(name: str, runs: Sequence[Run], levels: Sequence[str], start: Measurement) -> dict[str, Any]:
    """{question, points, verdict, statement, differences} of one study from the runs that are finished. levels: of errors of
    cameras, the exact ones first; start: the model before its first step."""
    mine = [r for r in runs if name in r.studies]
    if name == "poses":
        return _poses(mine, levels)
    return _steps(mine, start) if name == "steps" else _batch(mine)


def _poses(runs: Sequence[Run], levels: Sequence[str]) -> dict[str, Any]:
    samples = {level: _last(r for r in runs if r.level == level) for level in levels}
    there = {level: sample for level, sample in samples.items() if sample is not None}
    points = [s.to_data(level, float(levels.index(level))) for level, s in there.items()]
    exact, others = there.get(levels[0]), [level for level in there if level != levels[0]]
    differences = [_difference(f"{levels[0]} less {o}", exact, there[o]) for o in others if exact is not None]
    judged = next((d for d in differences if d["what"].endswith("estimated")), None)
    verdict = _verdict(judged)
    statement = _said(
        verdict, judged, "Exact cameras control more than estimated ones", "Estimated cameras control more than exact ones",
        "Exact and estimated cameras cannot be told apart",
    )  # fmt: skip
    if differences:
        behind = [o for o, d in zip(others, differences, strict=True) if _verdict(d) == "agrees"]
        statement += f" Levels that fall behind exact cameras beyond chance: {', '.join(behind) or 'none'}."
    return {
        "question": "Does control need exact cameras in fine-tuning?",
        "claim": "minWM: a corpus with estimated cameras gave no control, corpora with exact ones did.",
        "points": points,
        "differences": differences,
        "verdict": verdict,
        "statement": statement,
    }


def _steps(runs: Sequence[Run], start: Measurement) -> dict[str, Any]:
    common = sorted(set.intersection(*({m.step for m in r.measured} for r in runs))) if runs else []
    samples = {0: Sample([start])} | {s: Sample([m for r in runs if (m := r.at(s)) is not None]) for s in common}
    steps = list(samples)
    differences = []
    if len(steps) > 1:
        differences = [_difference(f"step {steps[-1]} less step {steps[0]}", samples[steps[-1]], samples[steps[0]])]
    judged = differences[0] if differences else None
    verdict = _verdict(judged)
    statement = _said(
        verdict, judged, "Control grows with steps", "Control falls with steps", "Growth with steps cannot be told",
    )  # fmt: skip
    since = {name: _appears(samples, name) for name in JUDGED}
    if differences:
        shown = ", ".join(f"{n} from step {s}" if s else f"{n} at no step yet" for n, s in since.items())
        statement += f" Above the untrained model's beyond chance: {shown}."
    return {
        "question": "When does control appear?",
        "claim": "minWM: after about 5,000 steps, strong at 8,000.",
        "points": [sample.to_data(f"step {step}", float(step)) for step, sample in samples.items()],
        "differences": differences,
        "appears": since,
        "verdict": verdict,
        "statement": statement,
    }


def _batch(runs: Sequence[Run]) -> dict[str, Any]:
    sizes = sorted({r.batch for r in runs})
    samples = {b: s for b in sizes if (s := _last(r for r in runs if r.batch == b)) is not None}
    sizes = list(samples)
    largest = sizes[-1] if sizes else 0
    differences = [_difference(f"batch {largest} less {b}", samples[largest], samples[b]) for b in sizes[:-1]]
    small = [d for b, d in zip(sizes, differences, strict=False) if b < 4]
    judged = small[0] if small else None
    verdict = _verdict(judged)
    statement = _said(
        verdict, judged, "Small batches control less", "Small batches control more", "The smallest batch cannot be told apart",
    )  # fmt: skip
    told = [b for b, d in zip(sizes, differences, strict=False) if _verdict(d) == "agrees"]
    if differences:
        statement += f" Sizes that fall behind {largest} beyond chance: {', '.join(map(str, told)) or 'none'}."
    spread = {str(b): _spread(s) for b, s in samples.items() if len(s.by_seed) > 1}
    statement += _steadiness(spread, 8, largest)
    same_clips, at_same_clips = _same_clips(runs, samples)
    ahead = [d["batch"] for d in at_same_clips if _verdict(d) == "agrees"]
    if at_same_clips:
        compared = ", ".join(str(d["batch"]) for d in at_same_clips)
        statement += (
            f" At equal clips instead of equal steps (compared: {compared}), sizes that are ahead of {largest} beyond chance: "
            f"{', '.join(map(str, ahead)) or 'none'}."
        )
    return {
        "question": "How small may batches be, at equal steps?",
        "claim": "minWM: under 4 no control, 8 unstable, 16 works.",
        "points": [s.to_data(f"batch {b}", float(b)) for b, s in samples.items()],
        "same_clips": same_clips,
        "spread": spread,
        "differences": [*differences, *at_same_clips],
        "verdict": verdict,
        "statement": statement,
    }


def _spread(sample: Sample) -> dict[str, float]:
    """How far seeds lie apart, by the judged figures."""
    names = [n for n in JUDGED if all(n in f for f in sample.by_seed)]
    return {n: round(float(np.ptp([f[n] for f in sample.by_seed])), 4) for n in names}


def _steadiness(spread: dict[str, dict[str, float]], size: int, largest: int) -> str:
    """One sentence on whether a size is less steady than the largest; none where it was not run."""
    mine, theirs = spread.get(str(size)), spread.get(str(largest))
    if mine is None or theirs is None or size == largest:
        return ""
    said = ", ".join(f"{n} {mine[n]:.3g} against {theirs[n]:.3g}" for n in mine)
    seen = "wider" if all(mine[n] > theirs[n] for n in mine) else "not wider throughout"
    return f" Seeds lie apart at {size} and at {largest} by {said}: {seen}."


def _same_clips(runs: Sequence[Run], samples: dict[int, Sample]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """For every smaller batch, the largest one at the step where it had seen as many clips (equal steps are not equal data),
    and the smaller one less that. Left out where it was not measured near there."""
    sizes = list(samples)
    large = [r for r in runs if sizes and r.batch == sizes[-1]]
    points, differences = [], []
    for b in sizes[:-1]:
        last = max(m.step for r in runs if r.batch == b for m in r.measured)
        wanted = last * b / sizes[-1]
        steps = sorted({m.step for r in large for m in r.measured}, key=lambda s: abs(s - wanted))
        if steps and abs(steps[0] - wanted) <= 0.25 * wanted:
            then = Sample([m for r in large if (m := r.at(steps[0])) is not None])
            points.append(then.to_data(f"batch {sizes[-1]} after {steps[0]} steps", float(b)))
            what = f"batch {b} less {sizes[-1]} after {steps[0]} steps (equal clips)"
            differences.append({**_difference(what, samples[b], then), "batch": b})
    return points, differences


def _last(runs: Any) -> Sample | None:
    """The last measurements of runs of one setting."""
    found = [r.measured[-1] for r in runs if r.measured]
    return Sample(found) if found else None


def _appears(samples: dict[int, Sample], name: str) -> int | None:
    """The first step from which on a figure lies above the untrained model's beyond chance at every measurement."""
    since, untrained = None, samples[0]
    for step, sample in samples.items():
        grown = sample.less(untrained, name)
        if grown is None or not grown["low"] > 0:
            since = None
        elif since is None:
            since = step
    return since


def _difference(what: str, a: Sample, b: Sample) -> dict[str, Any]:
    return {"what": what, "figures": {name: a.less(b, name) for name in FIGURES}}


def _verdict(difference: dict[str, Any] | None) -> Verdict:
    """By the first of the judged figures that tells."""
    if difference is None:
        return "missing"
    found = _judged(difference)
    if found is None:
        return "not told"
    return "agrees" if difference["figures"][found]["value"] > 0 else "disagrees"


def _judged(difference: dict[str, Any]) -> str | None:
    figures = difference["figures"]
    return next((n for n in JUDGED if figures[n] is not None and figures[n]["told"]), None)


def _said(verdict: Verdict, difference: dict[str, Any] | None, yes: str, no: str, unknown: str) -> str:
    """One sentence with its numbers."""
    if difference is None:
        return "The runs that would tell are not finished."
    numbers = "; ".join(
        f"{name} {f['value']:+.3g} ({f['low']:+.3g} to {f['high']:+.3g})"
        for name in JUDGED
        if (f := difference["figures"][name]) is not None
    )
    lead = {"agrees": yes, "disagrees": no}.get(verdict, unknown)
    end = {"agrees": "the direction minWM reports", "disagrees": "not the direction minWM reports"}
    return f"{lead}: {difference['what']}, {numbers}; {end.get(verdict, 'the interval holds 0')}."


def _figures(m: Measurement) -> dict[str, float]:
    return {k: float(v) for k, v in m.figures.items() if k in FIGURES}


def _bootstrap(measurements: Sequence[Measurement]) -> dict[str, np.ndarray]:
    """[DRAWS] of every figure."""
    found = [Validation.of_data({k: m.details[k] for k in ("asked", "shown", "growth", "psnr")}) for m in measurements]
    errors = [(np.array(m.details["own"]), np.array(m.details["other"])) for m in measurements if "own" in m.details]
    episodes, rng = np.random.default_rng(0), np.random.default_rng([1, *(m.step for m in measurements)])
    draws: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(DRAWS):
        spin, walk = (episodes.integers(0, n, n) for n in (len(found[0].asked), len(found[0].psnr)))
        clips = episodes.integers(0, 1 << 30, 64)
        chosen = rng.integers(0, len(found), len(found))
        drawn = {i: found[i].figures(spin.tolist(), walk.tolist()) for i in set(chosen.tolist())}
        for name in draws:
            if name != "camera_use":
                draws[name].append(float(np.mean([drawn[i][name] for i in chosen])))
        if len(errors) == len(found):
            pick = clips[: len(errors[0][0])] % len(errors[0][0])
            uses = [100 * (errors[i][1][pick].sum() / errors[i][0][pick].sum() - 1) for i in chosen]
            draws["camera_use"].append(float(np.mean(uses)))
    return {name: np.array(values) for name, values in draws.items()}


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(draws, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return {"value": round(value, 5), "low": round(float(low), 5), "high": round(float(high), 5)}
