"""Answers of a blind comparison, un-blinded: how often B was preferred to A, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.blind import QUESTIONS, SCHEMA, code_of, first_is_left
from worldline.evaluate.finished import read_run
from worldline.evaluate.statistics import mean_interval
from worldline.schema import WorldlineError

CHOICES = ("left", "tie", "right")


class AnswersError(WorldlineError):
    """A file of answers that is none, or one about other models."""


@dataclass(frozen=True)
class Preference:
    """Of one question. a, b, ties: answers; share: of B, a tie counting half, with its 95 % bootstrap interval over
    episodes; p: exact two-sided binomial of the decided answers against a coin; better: 'A', 'B' or ''."""

    question: str
    a: int
    b: int
    ties: int
    episodes: int
    share: float
    low: float
    high: float
    p: float
    better: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; an interval that cannot be had is null."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def preferences(a: Path, b: Path, files: Sequence[Path]) -> list[Preference]:
    """One a question that was answered. files: of one or several raters. Raises AnswersError where one does not belong to
    A and B."""
    codes = tuple(code_of(read_run(run)) for run in (a, b))
    given: dict[str, dict[str, list[float]]] = {}  # question -> case -> 1 for B, 0 for A, 0.5 for a tie
    for path in files:
        said = read_answers(path)
        if said["models"] != sorted(codes):
            raise AnswersError(f"{path} compares other models than {a} and {b}; expected the answers to their page")
        for entry in said["answers"]:
            left = first_is_left(int(said["seed"]), entry["case"], codes)
            for question in QUESTIONS:
                if question in entry:
                    given.setdefault(question, {}).setdefault(entry["case"], []).append(_of_b(entry[question], left))
    if not given:
        raise AnswersError(f"{', '.join(map(str, files))}: no question was answered")
    return [_preference(q, given[q]) for q in QUESTIONS if q in given]


def read_answers(path: Path) -> dict[str, Any]:
    """A file the page saved. Raises AnswersError where it is something else."""
    try:
        said = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise AnswersError(f"{path} cannot be read as JSON ({error}); expected what a blind page saved") from error
    if not isinstance(said, dict) or said.get("schema") != SCHEMA:
        found = said.get("schema") if isinstance(said, dict) else type(said).__name__
        raise AnswersError(f"{path} has schema {found!r}; expected {SCHEMA}")
    if missing := sorted({"models", "seed", "answers"} - set(said)):
        raise AnswersError(f"{path} lacks {', '.join(missing)}; expected what a blind page saved")
    for entry in said["answers"]:
        for question in QUESTIONS:
            if entry.get(question, "tie") not in CHOICES:
                raise AnswersError(f"{path}: {entry['case']} answers {entry[question]!r}; expected left, tie or right")
    return said


def _of_b(choice: str, first_left: bool) -> float:
    if choice == "tie":
        return 0.5
    return float((choice == "left") != first_left)


def _preference(question: str, given: dict[str, list[float]]) -> Preference:
    every = np.concatenate([np.array(v) for v in given.values()])
    wins_a, wins_b = int((every == 0).sum()), int((every == 1).sum())
    # Raters of one episode see the same clips: the episode is what is drawn again.
    share = mean_interval(np.array([np.mean(v) for v in given.values()]))
    p = binomial_p(wins_b, wins_a + wins_b)
    told = p < 0.05 and (share.low > 0.5 or share.high < 0.5)
    better = ("B" if share.value > 0.5 else "A") if told else ""
    ties = len(every) - wins_a - wins_b
    return Preference(question, wins_a, wins_b, ties, len(given), share.value, share.low, share.high, p, better)


def binomial_p(wins: int, n: int) -> float:
    """Exact two-sided probability, under a fair coin, of a count as unlikely as `wins` of n; 1 for n = 0."""
    chances = [comb(n, k) for k in range(n + 1)]
    return min(1.0, sum(c for c in chances if c <= chances[wins]) / 2**n)
