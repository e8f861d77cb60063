"""How sure a figure is: bootstrap intervals over episodes, and paired differences on common episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldline.schema import ShapeError

ALPHA = 0.05
DRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """value with its 95 % bootstrap interval; low and high are nan with fewer than two episodes."""

    value: float
    low: float
    high: float


def resamples(n: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """int [draws, n]: episodes drawn with replacement; the same n and seed give the same draws, so that two models are
    resampled alike."""
    return np.random.default_rng([seed, n]).integers(0, n, size=(draws, n))


def mean_interval(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile interval of the mean (Efron 1979) of [n] episodes."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ShapeError(f"values {values.shape}: expected [n] with n >= 1")
    if len(values) < 2:
        return Interval(float(values.mean()), float("nan"), float("nan"))
    means = values[resamples(len(values), draws, seed)].mean(axis=1)
    return Interval(float(values.mean()), *_percentiles(means))


def pooled_interval(n: int, figure: Callable[[np.ndarray], float], draws: int = 200, seed: int = 0) -> Interval:
    """Of a figure of several episodes together: figure(indices [m]) -> value."""
    value = figure(np.arange(n))
    if n < 2:
        return Interval(value, float("nan"), float("nan"))
    drawn = np.array([figure(i) for i in resamples(n, draws, seed)])
    drawn = drawn[np.isfinite(drawn)]
    return Interval(value, *_percentiles(drawn)) if len(drawn) else Interval(value, float("nan"), float("nan"))


@dataclass(frozen=True)
class Difference:
    """b less a on common episodes: interval as above; p: two-sided, by random signs; told: whether 0 lies outside the
    interval and p is below 0.05."""

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def told(self) -> bool:
        """Whether the two differ beyond chance."""
        return bool(self.p < ALPHA and (self.low > 0 or self.high < 0))


def paired_difference(a: np.ndarray, b: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Difference:
    """a, b: [n] figures of the same episodes in the same order. Raises ShapeError where they do not match."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ShapeError(f"figures {a.shape} and {b.shape}: expected two arrays [n] of the same episodes")
    d, n = b - a, len(a)
    found = mean_interval(d, draws, seed)
    if n < 2:
        return Difference(found.value, found.low, found.high, 1.0, n)
    if n <= 12:  # all sign patterns, exactly
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng([seed, n]).choice((-1, 1), size=(10_000, n))
        signs[0] = 1
    means = np.abs((signs * d).mean(axis=1))
    return Difference(found.value, found.low, found.high, float((means >= abs(d.mean()) - 1e-12).mean()), n)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)
