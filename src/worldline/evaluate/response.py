"""Control response: how late, how strongly and how surely the view follows the command."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LAGS = range(-2, 13)


@dataclass(frozen=True)
class Response:
    """lag in frames (negative: the model acts before the command, a leak), gain and correlation at that lag."""

    lag: int
    gain: float
    corr: float
    frozen: bool = False


def control_response(commands: list[np.ndarray], measured: list[np.ndarray]) -> Response:
    """Pool episodes. commands, measured: lists of [F] rates, same lengths.

    lag = argmax |corr(u_t, y_{t + L})| over L in [-2, 12]; gain = <u, y> / <u, u> there. Output that never moves has no
    correlation: it is reported as zeros and flagged.
    """
    if all(np.abs(y).max(initial=0) < 1e-6 for y in measured):
        return Response(0, 0.0, 0.0, frozen=True)
    scores = {L: _fit(*_shifted(commands, measured, L)) for L in LAGS}
    lag = max(scores, key=lambda L: abs(scores[L][1]))
    gain, corr = scores[lag]
    return Response(lag, gain, corr)


def _shifted(commands: list[np.ndarray], measured: list[np.ndarray], lag: int) -> tuple[np.ndarray, np.ndarray]:
    u, y = [], []
    for c, m in zip(commands, measured, strict=True):
        n = len(c) - abs(lag)
        if n > 0:
            u.append(c[:n] if lag >= 0 else c[-lag:])
            y.append(m[lag:] if lag >= 0 else m[:n])
    return (np.concatenate(u), np.concatenate(y)) if u else (np.zeros(1), np.zeros(1))


def _fit(u: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    if u.std() < 1e-9 or y.std() < 1e-9:
        return 0.0, 0.0
    return float(u @ y / (u @ u)), float(np.corrcoef(u, y)[0, 1])
