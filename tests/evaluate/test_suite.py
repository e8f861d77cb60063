"""The suite against players with one planted fault each: does the figure that should see it see it?"""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluate.panorama import FaultyPlayer, episodes
from worldline.evaluate.suite import evaluate_player
from worldline.schema import WorldlineError


@pytest.fixture(scope="module")
def held_out():
    return episodes()


def test_a_perfect_player_reaches_the_ceiling(held_out):
    m = evaluate_player(FaultyPlayer(), held_out).metrics
    assert (m["yaw_lag_frames"], m["yaw_gain"], m["yaw_corr"]) == (
        0,
        pytest.approx(1, abs=0.03),
        pytest.approx(1, abs=0.01),
    )
    assert m["psnr_1s"] == m["psnr_1s_codec"] == 60
    assert m["skill_1s"] == 1
    assert m["psnr_1s_wrong_actions"] == m["psnr_1s_simulator_other"] < 25
    assert m["psnr_1s_frozen"] < 25
    assert abs(m["yaw_cross_talk"]) < 0.001


@pytest.mark.parametrize("delay", [1, 4])
def test_a_late_player_shows_its_lag(held_out, delay):
    m = evaluate_player(FaultyPlayer(delay=delay), held_out).metrics
    assert m["yaw_lag_frames"] == delay
    assert m["yaw_gain"] == pytest.approx(1, abs=0.05)
    assert m["psnr_1s"] < 35


def test_a_slow_player_shows_its_gain(held_out):
    assert evaluate_player(FaultyPlayer(gain=0.5), held_out).metrics["yaw_gain"] == pytest.approx(0.5, abs=0.05)


def test_a_view_that_turns_in_jumps_of_a_latent_still_answers(held_out):
    m = evaluate_player(FaultyPlayer(jumps=True), held_out).metrics
    assert m["yaw_corr"] < 0.7
    assert (m["yaw_lag_latents"], m["yaw_gain_latent"]) == (0, pytest.approx(1, abs=0.05))
    assert m["yaw_corr_latent"] > 0.97
    assert min(m["yaw_corr_codec"], m["yaw_corr_latent_codec"]) > 0.97


def test_a_mirrored_player_is_told_from_a_deaf_one(held_out):
    assert evaluate_player(FaultyPlayer(gain=-1), held_out).metrics["yaw_corr"] < -0.8
    deaf = evaluate_player(FaultyPlayer(gain=0), held_out).metrics
    assert (deaf["yaw_frozen"], deaf["yaw_gain"]) == (1, 0)
    assert deaf["psnr_1s"] == deaf["psnr_1s_wrong_actions"] == deaf["psnr_1s_frozen"]


def test_noise_lowers_fidelity_and_not_the_response(held_out):
    found = evaluate_player(FaultyPlayer(noise=8), held_out)
    assert 28 < found.metrics["psnr_1s"] < 32
    assert found.metrics["yaw_gain"] == pytest.approx(1, abs=0.05)
    assert found.metrics["psnr_1s"] == pytest.approx(found.curves["model"][13:17].mean(), abs=1e-3)


def test_what_cannot_be_measured_is_left_out(held_out):
    short = episodes(walk_frames=9)
    m = evaluate_player(FaultyPlayer(), short).metrics
    assert "psnr_1s" not in m
    assert "psnr_frame_8" in m
    assert "psnr_frame_16" not in m
    assert all(np.isfinite(v) for v in m.values())
    with pytest.raises(WorldlineError, match="0 walk"):
        evaluate_player(FaultyPlayer(), held_out[:1])
