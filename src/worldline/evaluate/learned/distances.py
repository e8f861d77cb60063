"""Distances between two sets of features: Fréchet (FVD) and polynomial kernel (JEDi). float64 throughout."""

from __future__ import annotations

import numpy as np

from worldline.schema import ShapeError


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) of two Gaussians (Dowson and Landau 1982); means [D], covariances [D, D].

    The trace of the root is the sum of the roots of the eigenvalues of A^1/2 B A^1/2, which is symmetric: no complex parts,
    and none of the offsets that a general matrix root needs for singular covariances.
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (cov_a, cov_b))
    apart = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ b @ root).clip(0)
    return float(max(apart @ apart + np.trace(a) + np.trace(b) - 2 * np.sqrt(crossed).sum(), 0.0))


def frechet_of(a: np.ndarray, b: np.ndarray) -> float:
    """Between the Gaussians of two sets of features [n, D] and [m, D]."""
    a, b = _features(a, b)
    return frechet_distance(a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))


def polynomial_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """100 times the squared maximum mean discrepancy under k(x, y) = (x y / D)^2, biased estimate (Luo et al. 2024, JEDi)."""
    a, b = _features(a, b)
    width = a.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.square(x @ y.T / width).mean())

    return 100 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


def _features(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(f"features {a.shape} and {b.shape}: expected [n, D] and [m, D], n and m at least 2")
    return a, b
