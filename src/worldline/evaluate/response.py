"""Control response: how late, how strongly and how surely the view follows the command.

Drive a model with a pseudo-random command u_t, measure the rate y_t it shows, and correlate. Fidelity alone ranks a
perfect world that answers four frames late beside one that ignores its player; lag, gain and correlation tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.schema import ShapeError

LAGS = range(-2, 13)  # frames; a negative lag is a leak: the view moves before the command
STILL = 1e-6  # commands below ask for no motion
FROZEN = 0.01  # a view that never exceeds this share of the largest command does not move: a measured zero is not exact


@dataclass(frozen=True)
class Response:
    """lag in frames; gain (shown per asked) and correlation at that lag; frozen: the view never moved.

    gain_positive, gain_negative: gains of either sign of the command (their ratio is the asymmetry; nan where a sign was
    never asked); idle: mean |rate| shown where nothing was asked, in units of the mean |rate| asked.
    """

    lag: int
    gain: float
    corr: float
    frozen: bool = False
    gain_positive: float = float("nan")
    gain_negative: float = float("nan")
    idle: float = float("nan")


def control_response(commands: list[np.ndarray], measured: list[np.ndarray], lags: range = LAGS) -> Response:
    """Pool episodes. commands, measured: lists of [F] rates of equal lengths and units.

    lag = argmax_L |corr(u_t, y_{t+L})| over `lags`; gain = <u, y> / <u, u> there. A view that never moves has no
    correlation: it is reported as zeros and flagged. Raises ShapeError where lengths differ.
    """
    for u, y in zip(commands, measured, strict=True):
        if np.ndim(u) != 1 or np.shape(u) != np.shape(y):
            raise ShapeError(f"command {np.shape(u)} and response {np.shape(y)}: expected two arrays [F] of one length")
    largest = [max(np.abs(track).max(initial=0) for track in tracks) for tracks in (commands, measured)]
    if largest[1] <= FROZEN * largest[0]:
        return Response(0, 0.0, 0.0, frozen=True)
    scores = {lag: _correlation(*_shifted(commands, measured, lag)) for lag in lags}
    lag = max(scores, key=lambda n: (abs(scores[n]), -abs(n)))
    u, y = _shifted(commands, measured, lag)
    asked = np.abs(u) > STILL
    return Response(
        lag,
        _gain(u, y) if asked.any() else 0.0,
        scores[lag],
        gain_positive=_gain(u[u > STILL], y[u > STILL]),
        gain_negative=_gain(u[u < -STILL], y[u < -STILL]),
        idle=float(np.abs(y[~asked]).mean() / np.abs(u[asked]).mean())
        if asked.any() and not asked.all()
        else float("nan"),
    )


def by_latent(rates: np.ndarray, stride: int) -> np.ndarray:
    """Rates [F] of pixel frames -> mean rates [F // stride] of the groups of `stride` frames that share a latent: what is
    left when a codec moves its frames in jumps, one a latent."""
    whole = len(rates) // stride * stride
    return rates[:whole].reshape(-1, stride).mean(axis=1)


def cross_talk(commands: list[np.ndarray], other_axis: list[np.ndarray], lag: int) -> float:
    """How far a command moves an axis it should leave alone: the slope of z_{t+lag} over |u_t|, 0 for a clean model.

    The command enters by its size, since a turn to either side may push the view forward. A slope, not a correlation: the
    faintest bias of a measurement correlates, and is nothing to mind.
    """
    u, z = _shifted(commands, other_axis, lag)
    asked = np.abs(u) - np.abs(u).mean()
    return float(asked @ z / (asked @ asked)) if asked @ asked > STILL else 0.0


def _shifted(commands: list[np.ndarray], measured: list[np.ndarray], lag: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (u_t, y_{t + lag}) that lie within their episodes."""
    u, y = [np.zeros(0)], [np.zeros(0)]
    for command, shown in zip(commands, measured, strict=True):
        n = len(command) - abs(lag)
        if n > 0:
            u.append(command[:n] if lag >= 0 else command[-lag:])
            y.append(shown[lag:] if lag >= 0 else shown[:n])
    return np.concatenate(u), np.concatenate(y)


def _correlation(u: np.ndarray, y: np.ndarray) -> float:
    if len(u) < 2 or u.std() < STILL or y.std() < STILL:
        return 0.0
    return float(np.corrcoef(u, y)[0, 1])


def _gain(u: np.ndarray, y: np.ndarray) -> float:
    return float(u @ y / (u @ u)) if len(u) else float("nan")
