"""Do the figures see what they should, and only that? Faults are planted in rollouts of the simulator and scored as any
model is; every fault names the figures that must react and by how much, and those that may; all others must stay where
they are for a perfect world.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.evaluate.adapter import ReplayAdapter, drive
from worldline.evaluate.faults import FAULTS
from worldline.evaluate.figures import BY_NAME
from worldline.evaluate.score import Score, score
from worldline.evaluate.suites import Case, Entry, cases
from worldline.evaluate.truth import Truth, truth_of

if TYPE_CHECKING:
    from rich.table import Table

Range = tuple[float, float]
INF = math.inf
# Where every figure stands for a perfect world, with the room that a harmless change may take.
QUIET: dict[str, Range] = {
    "yaw_lag": (0, 0),
    "yaw_gain": (0.95, 1.05),
    "yaw_corr": (0.97, 1.0),
    "forward_gain": (0.9, 1.1),
    "idm_turn": (0.95, 1),
    "idm_accuracy": (0.88, 1),
    "tolerant_4s": (45, 60),
    "exposure_psnr_4s": (35, 60),
    "ssim_4s": (0.95, 1.0),
    "loop_gain": (15, INF),
    "sharpness": (0.9, 1.1),
    "sharpness_drift": (-2, 2),
    "level_drift": (-0.3, 0.3),
    "colour_drift": (-0.3, 0.3),
    "warp_ratio": (0.85, 1.15),
    "flicker": (-0.5, 0.5),
    "cuts": (0, 0),
    "idle_turn": (0, 0.5),
    "non_finite": (0, 0),
    "blank": (0, 0),
    "strobes": (0, 0),
}
PLACE = frozenset({"exposure_psnr_4s", "ssim_4s"})  # compare pixel with pixel: any wrong place moves them
KEYS = frozenset({"idm_turn", "idm_accuracy"})  # one model reads both
SCENE = frozenset({"sharpness", "sharpness_drift", "level_drift", "colour_drift", "warp_ratio"})  # other things in view


@dataclass(frozen=True)
class Expected:
    """must: figures and the range they must fall in; may: figures that may react besides."""

    must: dict[str, Range]
    may: frozenset[str] = field(default=frozenset())


EXPECTED: dict[str, Expected] = {
    "none": Expected({"tolerant_4s": (59.9, 60), "yaw_gain": (0.999, 1.001), "psnr_4s": (59.9, 60)}),
    "delay 4": Expected(
        {
            "yaw_lag": (4, 4),
            "yaw_gain": (0.95, 1.05),
            "yaw_corr": (0.97, 1),
            "psnr_4s": (0, 35),
            "tolerant_4s": (59, 60),
            "idm_turn": (0.5, 0.85),
        },
        PLACE | SCENE | KEYS,
    ),
    "early 2": Expected({"yaw_lag": (-2, -2), "tolerant_4s": (55, 60)}, PLACE | SCENE | KEYS | {"loop_gain"}),
    "gain 0.5": Expected(
        {"yaw_gain": (0.45, 0.55), "yaw_lag": (0, 0), "yaw_corr": (0.97, 1), "forward_gain": (0.3, 0.7)},
        PLACE | SCENE | {"tolerant_4s"},
    ),
    "mirrored": Expected(
        {"yaw_gain": (-1.05, -0.95), "yaw_corr": (-1, -0.8), "forward_gain": (-3, -0.3), "idm_turn": (0, 0.4)},
        PLACE | KEYS | SCENE | {"tolerant_4s"},
    ),
    "frozen": Expected(
        {
            "yaw_gain": (0, 0),
            "yaw_corr": (0, 0),
            "loop_gain": (0, 0),
            "warp_ratio": (0, 0.05),
            "idm_turn": (0.33, 0.34),
        },
        PLACE | KEYS | SCENE | {"tolerant_4s", "forward_gain"},
    ),
    "freezes half way": Expected(
        {"yaw_gain": (0.2, 0.8), "yaw_gain_late": (-0.2, 0.4), "tolerant_4s": (0, 45), "idm_turn": (0.4, 0.8)},
        PLACE | KEYS | SCENE | {"yaw_corr", "forward_gain", "loop_gain"},
    ),
    "flicker 15 %": Expected(
        {"flicker": (10, 100), "warp_ratio": (1.3, INF), "strobes": (0.5, 1)},
        PLACE | {"tolerant_4s", "level_drift", "colour_drift", "sharpness", "loop_gain", "forward_gain"},
    ),
    "blur ramp": Expected(
        {"sharpness_drift": (-INF, -5), "sharpness": (0, 0.6)},
        PLACE | {"tolerant_4s", "warp_ratio", "loop_gain", "forward_gain", "yaw_gain"},
    ),
    "boiling": Expected(
        {"warp_ratio": (1.3, INF), "flicker": (-1, 1)},
        PLACE
        | KEYS
        | {"tolerant_4s", "sharpness", "sharpness_drift", "loop_gain", "forward_gain", "yaw_corr", "idle_turn"},
    ),
    "colour drift": Expected(
        {"colour_drift": (1, INF), "exposure_psnr_4s": (35, 60), "yaw_gain": (0.95, 1.05)},
        frozenset({"tolerant_4s", "ssim_4s", "level_drift", "sharpness", "sharpness_drift", "loop_gain", "warp_ratio"}),
    ),
    "noise": Expected(
        {"sharpness": (1.5, INF), "warp_ratio": (1.3, INF), "yaw_gain": (0.9, 1.1)},
        PLACE | {"tolerant_4s", "loop_gain", "sharpness_drift", "forward_gain", "idle_turn"},
    ),
    "wrong world": Expected(
        {"tolerant_4s": (0, 25), "yaw_corr": (-0.6, 0.6), "cuts": (1, INF), "idm_turn": (0, 0.6)},
        PLACE | KEYS | SCENE | {"yaw_lag", "yaw_gain", "forward_gain", "loop_gain", "flicker", "idle_turn"},
    ),
    "forgets": Expected(
        {"loop_gain": (-10, 5), "tolerant_4s": (0, 25)},
        PLACE | KEYS | SCENE | {"cuts", "flicker", "yaw_gain", "yaw_corr", "forward_gain", "yaw_lag", "idle_turn"},
    ),
    "one blank frame": Expected(
        {"blank": (1, 1)},
        PLACE | SCENE | {"cuts", "flicker", "yaw_corr", "yaw_gain", "forward_gain", "tolerant_4s", "idle_turn"},
    ),
    "strobe": Expected(
        {"strobes": (0.5, 1), "flicker": (5, 200)},
        PLACE | SCENE | {"cuts", "tolerant_4s", "yaw_corr", "yaw_gain", "forward_gain", "loop_gain", "idle_turn"},
    ),
    "oracle": Expected({"yaw_lag": (0, 0), "psnr_4s": (59.9, 60), "tolerant_4s": (59.9, 60), "yaw_corr": (0.99, 1)}),
}


@dataclass(frozen=True)
class Found:
    """Of one fault: every figure looked at, and what is wrong: figures that should have reacted, or should not have."""

    fault: str
    figures: dict[str, float]
    deaf: dict[str, str]
    nervous: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether all is as expected."""
        return not (self.deaf or self.nervous)


@dataclass(frozen=True)
class SelfTest:
    """All faults."""

    found: list[Found]

    @property
    def passed(self) -> bool:
        """Whether every fault was seen by what should see it, and by nothing else."""
        return all(f.passed for f in self.found)

    def table(self) -> Table:
        """A row a fault: what reacted, and what went wrong."""
        from rich.table import Table

        table = Table("fault", "seen by", "wrong")
        for f in self.found:
            must = EXPECTED[f.fault].must
            seen = ", ".join(f"{n} {f.figures[n]:.3g}" for n in must if n in f.figures)
            wrong = [f"{n}: {why}" for n, why in {**f.deaf, **f.nervous}.items()]
            table.add_row(f.fault, seen, "; ".join(wrong) or "[green]nothing[/]")
        return table


def clips() -> list[Case]:
    """The episodes faults are planted in: few, and of every kind that a figure looks at."""
    return cases(
        [
            Entry("S2", "yaw", 1, frames=96),
            Entry("S2", "yaw+forward", 1, frames=96),
            Entry("S3", "pan-60", 1),
            Entry("S7", "roam", 2, frames=72),
            Entry("S8", "idle", 1, frames=32),
        ]
    )


def self_test(
    folder: str | Path, faults: tuple[str, ...] = (), workers: int = 0, episodes: Sequence[Case] | None = None
) -> SelfTest:
    """Plant the faults (default: all, and the simulator driven chunk by chunk as the oracle) and look. folder: where
    truths are kept; workers: processes that share the work; episodes: default `clips()`. A figure that the episodes cannot
    show counts as deaf where it must react."""
    truths = [truth_of(case, folder) for case in (clips() if episodes is None else episodes)]
    wanted = faults or (*FAULTS, "oracle")
    if not workers:
        scored = [_scores(name, truths) for name in wanted]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            scored = list(pool.map(_scores, wanted, [truths] * len(wanted)))
    replay = scored[wanted.index("none")] if "none" in wanted else _scores("none", truths)
    return SelfTest([_judged(name, s, replay) for name, s in zip(wanted, scored, strict=True)])


def _scores(fault: str, truths: list[Truth]) -> dict[str, Score]:
    if fault != "oracle":
        others = truths[1:] + truths[:1]
        return {t.case.id: score(FAULTS[fault](t, o), t) for t, o in zip(truths, others, strict=True)}
    oracle, found = ReplayAdapter(frames_per_step=4), {}
    for truth in truths:
        oracle.expect(truth)
        played = drive(oracle, truth.start, truth.caption, truth.case.controls, truth.case.seed)
        found[truth.case.id] = score(played.frames, truth)
    oracle.close()
    return found


def _judged(fault: str, scores: dict[str, Score], replay: dict[str, Score]) -> Found:
    rows, expected = {"model": scores, "replay": replay}, EXPECTED[fault]
    measured = {name: BY_NAME[name].value(list(scores.values()), rows) for name in {*QUIET, *expected.must}}
    figures = {name: value for name, value in measured.items() if math.isfinite(value)}
    deaf = {
        name: f"{figures.get(name, math.nan):.3g}, expected {low:g} to {high:g}"
        for name, (low, high) in expected.must.items()
        if not low - 1e-9 <= figures.get(name, math.nan) <= high + 1e-9
    }
    nervous = {
        name: f"{figures[name]:.3g}, though nothing it measures changed"
        for name, (low, high) in QUIET.items()
        if name in figures
        and name not in expected.must
        and name not in expected.may
        and not low - 1e-9 <= figures[name] <= high + 1e-9
    }
    return Found(fault, figures, deaf, nervous)
