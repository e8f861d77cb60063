"""From the scores of a conversion's stages to one table: figures with intervals, and what few steps keep of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldline.evaluate.figures import BY_NAME, Figure
from worldline.evaluate.results import TOLD_OF_MODEL, stamp
from worldline.evaluate.runner import Plan
from worldline.evaluate.score import METRIC_VERSION, Score
from worldline.evaluate.stages import Measured, Rows
from worldline.evaluate.statistics import ALPHA, paired_difference, resamples
from worldline.evaluate.suites import FPS, PROTOCOL, seeds_hash, suite_hash
from worldline.schema import WorldlineError

SCHEMA = "worldline.stages/1"
# The lag of two seconds by frame is chance: openings are read in groups of four frames, whose lag is one of three.
CONTROL = ("yaw_gain_grouped", "yaw_corr_grouped", "forward_gain", "forward_corr", "idm_accuracy", "idm_turn")
OPENING = (*CONTROL, "psnr_1s", "tolerant_ood_map")
WHOLE = (
    "yaw_gain", "yaw_corr", *CONTROL, "psnr_1s", "tolerant_ood_map", "tolerant_4s", "skill_1s", "horizon", "sharpness",
    "colour_drift", "warp_ratio",
)  # fmt: skip
KEPT = ("tolerant_ood_map", "yaw_gain", "yaw_gain_grouped", "yaw_corr", "forward_gain", "idm_accuracy")
BAR = 0.9  # of the teacher's figure, that a few-step stage is to keep
BARRED = ("tolerant_ood_map", "yaw_gain")  # the figures that the bar is about
REFERENCES = ("replay", "codec", "other-actions", "frozen")
DRAWS = 200


@dataclass(frozen=True)
class Kept:
    """A stage's figure over the teacher's on the same episodes, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


def kept(figure: Figure, own: Rows, teacher: Rows, draws: int = DRAWS) -> Kept | None:
    """None where either has no such figure, or the teacher's is 0: nothing of nothing is kept."""
    mine, theirs = own["model"], teacher["model"]
    cases = [c for c, s in theirs.items() if c in mine and figure.picks(s)]

    def share(which: Sequence[str]) -> float:
        a = figure.value([mine[c] for c in which], own)
        b = figure.value([theirs[c] for c in which], teacher)
        return a / b if np.isfinite(b) and abs(b) > 1e-6 else float("nan")

    value = share(cases) if cases else float("nan")
    if not np.isfinite(value):
        return None
    if len(cases) < 2:
        return Kept(value, float("nan"), float("nan"), len(cases))
    drawn = np.array([share([cases[k] for k in i]) for i in resamples(len(cases), draws)])
    low, high = np.percentile(drawn[np.isfinite(drawn)], [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return Kept(value, float(low), float(high), len(cases))


def speed(scores: Mapping[str, Score]) -> float:
    """Generated frames a second, from the start image to the last frame, waiting included."""
    frames = sum(len(s.series["yaw"]) for s in scores.values())
    ms = sum(s.values["first_ms"] + float(s.series["step_ms"][1:].sum()) for s in scores.values())
    return 1e3 * frames / ms if ms > 0 else float("nan")


def stage_results(measured: list[Measured], plan: Plan, teacher: str, facts: Mapping[str, str]) -> dict[str, Any]:
    """The content of stages.json. teacher: the label of the causal multi-step stage. Raises WorldlineError where it was not
    measured."""
    by_label = {m.contestant.label: m for m in measured}
    if teacher not in by_label or by_label[teacher].whole is None:
        causal = [m.contestant.label for m in measured if m.whole is not None]
        raise WorldlineError(f"teacher {teacher!r}; expected one of {', '.join(causal)}")
    most = by_label[teacher].whole
    assert most is not None
    rows = []
    for m in measured:
        played = m.whole if m.whole is not None else m.opening
        assert played is not None, "a stage that was measured has scores"
        row: dict[str, Any] = {
            "label": m.contestant.label,
            "stage": m.contestant.stage,
            "sampling": m.contestant.about,
            "weights": m.contestant.weights,
            "bidirectional": bool(m.contestant.clip),
            "frames_a_second": round(speed(played["model"]), 3),
            "opening": figures_of(OPENING, m.opening),
            "whole": figures_of(WHOLE, m.whole),
        }
        if m.whole is not None and m.contestant.label != teacher:
            row["kept"] = _against(m.whole, most)
        rows.append(row)
    openings = next((m.opening for m in measured if m.opening is not None), None)
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "metric_version": METRIC_VERSION,
        "preset": plan.preset,
        "suite_hash": suite_hash(plan.cases()),
        "seeds": seeds_hash(),
        "stamp": {**stamp(), **facts},
        "teacher": teacher,
        "episodes": len(most["model"]),
        "frames": int(sum(len(s.series["yaw"]) for s in most["model"].values())),
        "opening_seconds": _seconds(openings),
        "stages": rows,
        "references": {
            name: {"opening": _reference(name, OPENING, openings), "whole": _reference(name, WHOLE, most)}
            for name in REFERENCES
        },
        "verdict": verdict(rows, teacher),
    }


def figures_of(names: Sequence[str], rows: Rows | None) -> dict[str, Any]:
    """name -> {value, low, high, n, status, reason} of the row `model`; nothing where it was not played."""
    if rows is None:
        return {}
    scores = list(rows["model"].values())
    return {name: _plain(BY_NAME[name].of(scores, rows)) for name in names}


def _reference(row: str, names: Sequence[str], rows: Rows | None) -> dict[str, Any]:
    told = [n for n in names if n not in TOLD_OF_MODEL]
    return figures_of(told, None if rows is None or row not in rows else {**rows, "model": rows[row]})


def _against(own: Rows, teacher: Rows) -> dict[str, Any]:
    """Share kept and paired difference of every figure of KEPT."""
    found: dict[str, Any] = {}
    for name in KEPT:
        figure = BY_NAME[name]
        share = kept(figure, own, teacher)
        mine, theirs = (figure.by_case(list(r["model"].values()), r) for r in (own, teacher))
        common = sorted(set(mine) & set(theirs))
        if share is None or not common:
            continue
        apart = paired_difference(np.array([theirs[c] for c in common]), np.array([mine[c] for c in common]))
        found[name] = {
            **{k: _number(v) for k, v in vars(share).items()},
            "difference": _number(apart.value),
            "difference_low": _number(apart.low),
            "difference_high": _number(apart.high),
            "p": _number(apart.p),
            "told": apart.told,
        }
    return found


def verdict(rows: Sequence[Mapping[str, Any]], teacher: str) -> list[str]:
    """What the table says about the two claims of a conversion: control grows from the base on, few steps keep it."""
    told = []
    part = "opening" if rows[0]["opening"] else "whole"
    first, by_label = rows[0], {r["label"]: r for r in rows}
    start, there = (
        by_label[label][part].get("yaw_corr_grouped", {}).get("value") for label in (first["label"], teacher)
    )
    if start is not None and there is not None and first["label"] != teacher:
        grew = "grows" if there > start + 0.05 else "does not grow"
        told.append(
            f"Control {grew} from {first['label']} to {teacher}: yaw correlation in groups of four frames {start:.2f} to "
            f"{there:.2f} on the same {'openings' if part == 'opening' else 'episodes'}."
        )
    for row in rows:
        shares = row.get("kept", {})
        if not all(name in shares for name in BARRED):
            continue
        said, short = [], []
        for name, label in zip(BARRED, ("tolerant PSNR", "yaw gain"), strict=True):
            k = shares[name]
            span = "" if k["low"] is None else f" ({100 * k['low']:.0f} to {100 * k['high']:.0f})"
            said.append(f"{100 * k['value']:.0f} %{span} of its {label}")
            if k["value"] < BAR:
                short.append(f"{label} by {100 * (BAR - k['value']):.0f} points")
        ending = f"short of {100 * BAR:.0f} %: {', '.join(short)}" if short else f"{100 * BAR:.0f} % or more"
        told.append(f"{row['label']} keeps, of {teacher}, {' and '.join(said)}: {ending}.")
    return told


def _seconds(rows: Rows | None) -> float | None:
    return None if rows is None else max(len(s.series["yaw"]) for s in rows["model"].values()) / FPS


def _number(value: Any) -> Any:
    """JSON has no nan."""
    return value if not isinstance(value, float) else round(value, 6) if np.isfinite(value) else None


def _plain(figure: dict[str, object]) -> dict[str, Any]:
    return {k: _number(v) for k, v in figure.items()}
