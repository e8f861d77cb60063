"""Control response, in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.evaluate.episodes import spin_controls
from worldline.evaluate.response import by_latent, control_response, cross_talk
from worldline.schema import ShapeError


@pytest.fixture
def commands():
    return [spin_controls(96, np.random.default_rng(seed)).look[:, 0].astype(float) for seed in range(3)]


def late(u: np.ndarray, lag: int) -> np.ndarray:
    return np.concatenate([np.zeros(lag), u[: len(u) - lag]])


@pytest.mark.parametrize("lag", range(7))
def test_a_planted_lag_is_found_exactly_despite_noise(commands, lag):
    rng = np.random.default_rng(lag)
    found = control_response(commands, [late(u, lag) + rng.normal(0, 0.3, len(u)) for u in commands])
    assert found.lag == lag
    assert found.corr > 0.95
    assert found.gain == pytest.approx(1, abs=0.05)


def test_a_planted_gain_is_found(commands):
    rng = np.random.default_rng(0)
    found = control_response(commands, [0.5 * u + rng.normal(0, 0.2, len(u)) for u in commands])
    assert found.gain == pytest.approx(0.5, abs=0.05)


def test_a_mirrored_view_has_negative_gain_and_correlation(commands):
    found = control_response(commands, [-u for u in commands])
    assert (found.lag, found.gain) == (0, pytest.approx(-1))
    assert found.corr < -0.8


def test_a_leak_shows_as_negative_lag(commands):
    assert control_response(commands, [np.concatenate([u[2:], [0, 0]]) for u in commands]).lag == -2


def test_a_frozen_view_is_zero_and_flagged(commands):
    found = control_response(commands, [np.zeros_like(u) for u in commands])
    assert (found.gain, found.corr, found.lag, found.frozen) == (0, 0, 0, True)


def test_a_view_that_only_trembles_is_frozen_and_one_nobody_moves_is_too(commands):
    rng = np.random.default_rng(0)
    assert control_response(commands, [rng.uniform(-0.01, 0.01, len(u)) for u in commands]).frozen
    assert control_response([np.zeros(40)], [np.zeros(40)]).frozen


def test_an_unrelated_view_hardly_correlates(commands):
    rng = np.random.default_rng(1)
    assert abs(control_response(commands, [rng.normal(0, 2, len(u)) for u in commands]).corr) < 0.35


def test_asymmetry_and_idle_motion(commands):
    shown = [np.where(u > 0, u, 0.4 * u) + np.where(u == 0, 0.5, 0) for u in commands]
    found = control_response(commands, shown)
    assert (found.gain_positive, found.gain_negative) == (pytest.approx(1), pytest.approx(0.4))
    assert found.idle == pytest.approx(0.25)


def test_cross_talk_sees_another_axis_moved_by_the_size_of_a_command(commands):
    assert cross_talk(commands, [0.01 * np.abs(late(u, 3)) for u in commands], 3) == pytest.approx(0.01)
    assert cross_talk(commands, [np.zeros_like(u) for u in commands], 0) == 0


def test_rates_of_a_latent_are_the_mean_of_its_frames():
    assert by_latent(np.array([0, 0, 0, 8, 2, 2, 2, 2, 5.0]), 4).tolist() == [2, 2]


def test_lengths_must_agree(commands):
    with pytest.raises(ShapeError, match="one length"):
        control_response(commands, [u[1:] for u in commands])
