"""One solver step each, apart from any loop: Euler, consistency re-noising, and UniPC for the multi-step teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def euler_step(x: Tensor, v: Tensor, s: float | Tensor, s_next: float | Tensor) -> Tensor:
    """x + (s_next - s) v: one Euler step of dx/dsigma = v."""
    return x + (s_next - s) * v


def consistency_step(x0: Tensor, eps: Tensor, s_next: float) -> Tensor:
    """Re-noise a predicted x0 to the next level: (1 - s_next) x0 + s_next eps (multistep consistency sampling)."""
    return (1 - s_next) * x0 + s_next * eps


def _log_snr(s: float) -> float:
    """lambda = log(alpha / sigma) of rectified flow, alpha = 1 - sigma; +inf at 0, -inf at 1."""
    if s <= 0:
        return math.inf
    return -math.inf if s >= 1 else math.log((1 - s) / s)


class UniPC:
    """UniPC of order 2 (arXiv:2302.04867), B2(h) = e^h - 1, on x0 predictions; corrector after every step but the first.

    A fresh object a trajectory: `step` remembers the last two predictions. The first and the last step are of order 1.
    """

    def __init__(self) -> None:
        self._x0: list[Tensor] = []
        self._lambda: list[float] = []
        self._sample: Tensor | None = None
        self._order = 1
        self._s_prev = 1.0

    def step(self, x: Tensor, v: Tensor, s: float, s_next: float) -> Tensor:
        """x at noise level s with velocity v -> x at s_next (s_next = 0 returns x0)."""
        x0 = x - s * v
        if self._sample is not None:
            x = self._correct(x0, s)
            # The model was asked at the predicted x, so its x0 stands; the corrected x carries the trajectory on.
        self._x0 = [*self._x0[-1:], x0]
        self._lambda = [*self._lambda[-1:], _log_snr(s)]
        self._order = min(2, len(self._x0)) if s_next > 0 else 1
        self._sample, self._s_prev = x, s
        return self._predict(x, s, s_next)

    def _predict(self, x: Tensor, s: float, s_next: float) -> Tensor:
        x0 = self._x0[-1]
        if s_next <= 0:
            return x0
        h = _log_snr(s_next) - self._lambda[-1]
        grow = math.expm1(-h) if math.isfinite(h) else -1.0  # e^{-h} - 1
        out = (s_next / s) * x - (1 - s_next) * grow * x0
        if self._order == 2 and math.isfinite(self._lambda[0]):
            r = (self._lambda[0] - self._lambda[-1]) / h
            out = out - (1 - s_next) * grow * 0.5 * (self._x0[0] - x0) / r
        return out

    def _correct(self, x0_new: Tensor, s: float) -> Tensor:
        """Redo the last step knowing the prediction at its end (UniC)."""
        assert self._sample is not None
        x, x0, lam = self._sample, self._x0[-1], self._lambda[-1]
        h = _log_snr(s) - lam
        grow = math.expm1(-h) if math.isfinite(h) else -1.0
        out = (s / self._s_prev) * x - (1 - s) * grow * x0
        if self._order == 1 or not math.isfinite(self._lambda[0]) or not math.isfinite(h):
            return out - (1 - s) * grow * 0.5 * (x0_new - x0)
        r = (self._lambda[0] - lam) / h
        rhos = _bh2_weights(r, -h, grow)
        return out - (1 - s) * grow * (rhos[0] * (self._x0[0] - x0) / r + rhos[1] * (x0_new - x0))


def _bh2_weights(r: float, hh: float, bh: float) -> tuple[float, float]:
    """Solve [[1, 1], [r, 1]] rho = b of UniPC's corrector, b_k = phi_k(hh) k! / B(h)."""
    phi_1 = math.expm1(hh) / hh - 1
    phi_2 = phi_1 / hh - 0.5
    b = torch.tensor([phi_1 / bh, 2 * phi_2 / bh], dtype=torch.float64)
    A = torch.tensor([[1.0, 1.0], [r, 1.0]], dtype=torch.float64)
    rho = torch.linalg.solve(A, b)
    return float(rho[0]), float(rho[1])
