"""The smallest suite against players with one planted fault each."""

from __future__ import annotations

import json

import pytest

from tests.evaluate.panorama import FaultyPlayer, episodes
from worldline.evaluate.validation import FIGURES, Validation, ceiling, validate
from worldline.schema import WorldlineError


@pytest.fixture(scope="module")
def held_out():
    return episodes(spin_frames=40, walk_frames=16)


def test_a_perfect_player_is_at_the_ceiling(held_out):
    found = validate(FaultyPlayer(), held_out).figures()
    assert set(found) == set(FIGURES)
    assert found["yaw_corr"] == pytest.approx(1, abs=0.01)
    assert found["yaw_gain"] == pytest.approx(1, abs=0.03)
    assert found["yaw_gain_error"] == abs(found["yaw_gain"] - 1)
    assert abs(found["cross_talk"]) < 0.1
    assert found["psnr"] == 60
    assert found == ceiling(FaultyPlayer(), held_out, 41).figures() | {"psnr": 60}


def test_a_deaf_player_scores_nothing_and_a_mirrored_one_less(held_out):
    deaf = validate(FaultyPlayer(gain=0), held_out).figures()
    assert (deaf["yaw_corr"], deaf["yaw_gain"], deaf["yaw_gain_error"]) == (0, 0, 1)
    assert deaf["psnr"] < 30
    mirrored = validate(FaultyPlayer(gain=-1), held_out).figures()
    assert mirrored["yaw_corr"] < -0.9
    assert mirrored["yaw_gain_error"] == pytest.approx(2, abs=0.05)


def test_half_the_turn_is_half_the_gain_and_lateness_is_no_correlation(held_out):
    assert validate(FaultyPlayer(gain=0.5), held_out).figures()["yaw_gain"] == pytest.approx(0.5, abs=0.03)
    late = validate(FaultyPlayer(delay=6), held_out).figures()
    assert late["yaw_corr"] < 0.5, "no lag is searched: what comes late does not follow"


def test_chosen_episodes_and_plain_data(held_out):
    found = validate(FaultyPlayer(gain=0.5), held_out)
    again = Validation.of_data(json.loads(json.dumps(found.to_data())))
    for name, value in found.figures().items():
        assert again.figures()[name] == pytest.approx(value, abs=1e-3)
    assert found.figures([0, 0], [0])["yaw_corr"] == pytest.approx(found.figures()["yaw_corr"])


def test_both_suites_are_needed(held_out):
    for part in (held_out[:1], held_out[1:]):
        with pytest.raises(WorldlineError, match="expected some of both"):
            validate(FaultyPlayer(), part)
