"""How a statistic changes along a rollout: a robust slope over segments, less the truth's own, and the deepest fall."""

from __future__ import annotations

import numpy as np

from worldline.schema import ShapeError


def segment_means(series: np.ndarray, length: int) -> np.ndarray:
    """[F] -> [F // length], means of whole segments of `length` frames."""
    if length < 1:
        raise ShapeError(f"segments of {length} frames: expected at least 1")
    whole = len(series) // length * length
    return np.asarray(series, dtype=np.float64)[:whole].reshape(-1, length).mean(axis=1)


def theil_sen(values: np.ndarray) -> float:
    """Median slope over all pairs of segments, a segment; nan with fewer than two. (Theil 1950, Sen 1968)"""
    values = np.asarray(values, dtype=np.float64)
    i, j = np.triu_indices(len(values), 1)
    slopes = (values[j] - values[i]) / (j - i)
    slopes = slopes[np.isfinite(slopes)]
    return float(np.median(slopes)) if len(slopes) else float("nan")


def largest_drop(values: np.ndarray) -> float:
    """max_k (v_0 - v_k) >= 0: sees a collapse that recovers before the end."""
    values = np.asarray(values, dtype=np.float64)
    return float(max(0.0, np.nanmax(values[0] - values))) if np.isfinite(values).any() else float("nan")


def knee(values: np.ndarray) -> int | None:
    """Segment at which two straight lines meet that fit best; None where one line is as good (within a quarter of its
    error) or there are fewer than five segments."""
    values = np.asarray(values, dtype=np.float64)
    n, x = len(values), np.arange(len(values), dtype=np.float64)
    if n < 5:
        return None

    def error(columns: list[np.ndarray]) -> float:
        A = np.stack(columns, axis=1)
        return float(np.square(A @ np.linalg.lstsq(A, values, rcond=None)[0] - values).sum())

    one = error([np.ones(n), x])
    two = {k: error([np.ones(n), x, np.maximum(x - k, 0)]) for k in range(1, n - 1)}
    best = min(two, key=two.__getitem__)
    return best if two[best] < 0.75 * one and one > 1e-9 else None
