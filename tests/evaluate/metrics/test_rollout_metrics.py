"""Drift, returning, horizon, recovery, guards: in closed form, and by what they must not see."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.evaluate.panorama import K, render
from worldline.evaluate.fidelity import psnr
from worldline.evaluate.metrics.drift import knee, largest_drop, segment_means, theil_sen
from worldline.evaluate.metrics.guards import as_clip, blank_frames, most_flashes, strobes
from worldline.evaluate.metrics.horizon import kaplan_meier_median, useful_frames
from worldline.evaluate.metrics.quality import STATISTICS, quality
from worldline.evaluate.metrics.recovery import seconds_to_recover
from worldline.evaluate.metrics.revisit import loop_gain, revisit_gain, revisits, seam_psnr
from worldline.evaluate.player import nominal_path
from worldline.schema import Controls, ShapeError

# -- drift -------------------------------------------------------------------------------------------------------------


def test_slope_of_a_constant_is_zero_and_of_a_line_its_slope_despite_outliers():
    assert theil_sen(np.full(9, 4.0)) == 0
    line = 3 - 0.5 * np.arange(20.0)
    line[[3, 11]] = 50
    assert theil_sen(line) == pytest.approx(-0.5)
    assert np.isnan(theil_sen(np.array([1.0])))


def test_segments_are_whole_and_a_collapse_that_recovers_is_seen():
    assert segment_means(np.array([1, 3, 5, 7, 100.0]), 2).tolist() == [2, 6]
    assert largest_drop(np.array([5, 1, 5.0])) == 4
    assert largest_drop(np.array([1, 2, 3.0])) == 0


def test_a_knee_is_found_and_a_line_has_none():
    bent = np.concatenate([np.full(8, 10.0), 10 - 2 * np.arange(1, 7)])
    assert knee(bent) in (7, 8)
    assert knee(np.arange(12.0)) is None
    assert knee(np.ones(3)) is None


def test_each_statistic_sees_its_own_change():
    frame = render(np.array([10.0]))
    i = {name: k for k, name in enumerate(STATISTICS)}
    plain, blurred, darker, redder = (
        quality(f)[0]
        for f in (
            frame,
            cv2.GaussianBlur(frame[0], (0, 0), 2)[None],
            (frame * 0.8).astype(np.uint8),
            np.stack([np.clip(frame[..., 0] + 20.0, 0, 255), frame[..., 1], frame[..., 2]], -1).astype(np.uint8),
        )
    )
    assert blurred[i["sharpness"]] < 0.6 * plain[i["sharpness"]]
    assert abs(blurred[i["level"]] - plain[i["level"]]) < 1
    assert darker[i["level"]] == pytest.approx(0.8 * plain[i["level"]], abs=1)
    assert redder[i["cr"]] > plain[i["cr"]] + 5
    assert quality(np.array([[[[0, 0, 255]] * 8] * 8], dtype=np.uint8))[0][i["clipped"]] == 1


# -- returning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def there_and_back() -> np.ndarray:
    return render(np.concatenate([np.arange(0, 60, 3.0), np.arange(60, -1, -3.0), np.zeros(4)]))


def test_a_world_that_remembers_gains_and_a_frozen_one_does_not(there_and_back):
    F = len(there_and_back)
    assert loop_gain(there_and_back, far=20, back=F - 4) > 30
    assert loop_gain(np.repeat(there_and_back[:1], F, axis=0), far=20, back=F - 4) == 0


def test_a_world_that_forgets_gains_nothing(there_and_back):
    forgotten = there_and_back.copy()
    forgotten[21:] = render(np.linspace(60, 0, len(forgotten) - 21), seed=6)
    assert abs(loop_gain(forgotten, far=20, back=len(forgotten) - 4)) < 4


def test_marks_must_lie_in_order(there_and_back):
    with pytest.raises(ShapeError, match="far 9"):
        loop_gain(there_and_back, far=9, back=9)


def test_revisits_are_pairs_of_one_place_with_the_view_away_in_between():
    look = np.zeros((48, 3))
    look[:24, 0], look[24:, 0] = 3, -3
    path = nominal_path(Controls(np.zeros((48, 3)), look), K, 4.0)
    visits = revisits(path)
    assert (0, 24, 48) in visits
    assert all(j - i >= 16 and i < k < j for i, k, j in visits)
    headings = np.concatenate([[0], np.cumsum(look[:, 0])])
    assert revisit_gain(render(headings), visits) > 25
    assert revisit_gain(np.repeat(render(headings[:1]), 49, axis=0), visits) == 0
    walk = nominal_path(Controls(np.tile((0, 0, 1), (48, 1)), np.zeros((48, 3))), K, 4.0)
    assert revisits(walk) == []
    assert np.isnan(revisit_gain(render(headings), []))


def test_a_spin_that_closes_has_a_seam_like_its_start():
    whole, short = (render(np.arange(0, 361, 3.0) * scale) for scale in (1.0, 0.7))
    assert seam_psnr(whole, [120]) > 40
    assert seam_psnr(short, [120]) < 25
    assert psnr(whole[60], whole[0]) < 25


# -- horizon, recovery -------------------------------------------------------------------------------------------------


def test_a_clip_that_never_falls_is_censored_and_one_that_does_ends_there():
    assert useful_frames(np.full(60, 25.0), 18.0) == (60, False)
    falling = np.concatenate([np.full(30, 28.0), np.full(30, 18.0)])
    end, fell = useful_frames(falling, 18.0)
    assert fell
    assert 23 <= end <= 30
    # Half of the squared error is 3.01 dB.
    assert useful_frames(np.full(60, 21.05), 18.0) == (60, False)
    assert useful_frames(np.full(60, 20.95), 18.0) == (0, True)


def test_the_softness_of_a_codec_ends_no_horizon():
    """Errors that add: a rollout that is the codec's truth and a fifth of the guess's error besides."""
    codec, guess = 25.0, 25.5
    model = -10 * np.log10(10 ** (-codec / 10) + 0.2 * 10 ** (-guess / 10))
    assert model < guess
    assert useful_frames(np.full(60, model), guess) == (0, True)
    assert useful_frames(np.full(60, model), guess, np.full(60, codec)) == (60, False)
    assert useful_frames(np.full(60, model), guess, np.full(60, codec), share=0.19) == (0, True)


def test_kaplan_meier_counts_the_censored_as_long_as_they_were_seen():
    assert kaplan_meier_median(np.array([1, 2, 3, 4.0]), np.array([1, 1, 1, 1])) == 2
    assert kaplan_meier_median(np.array([1, 9, 9, 9.0]), np.array([1, 0, 0, 0])) == float("inf")
    # Two of five gone by 2; then one of the two still watched: 0.6 / 2 = 0.3 survive 5.
    assert kaplan_meier_median(np.array([1, 2, 3, 5, 8.0]), np.array([1, 1, 0, 1, 0])) == 5


def test_recovery_needs_quality_and_control_to_stay():
    one = np.ones(6)
    assert seconds_to_recover(one, one, one, one) == 0
    late = np.array([0.5, 0.7, 0.95, 0.98, 1, 1])
    assert seconds_to_recover(late, one, one, one) == 2
    assert seconds_to_recover(one, one, late, one) == 2
    assert seconds_to_recover(np.array([1, 0.2, 1, 0.2, 1, 0.2]), one, one, one) == float("inf")


# -- guards ------------------------------------------------------------------------------------------------------------


def test_non_finite_frames_are_counted_and_black():
    frames = np.full((3, 4, 5, 3), 0.5)
    frames[1, 2, 2, 0] = np.nan
    clip, bad = as_clip(frames)
    assert bad == 1
    assert clip[0, 0, 0, 0] == 128
    assert not clip[1].any()
    assert as_clip(clip) == (pytest.approx(clip), 0)
    with pytest.raises(ShapeError, match="uint8"):
        as_clip(np.zeros((1, 4, 5, 3), np.int32))


def test_blank_frames_are_counted():
    frames = render(np.zeros(4))
    frames[2] = 77
    assert blank_frames(frames) == 1


@pytest.mark.parametrize(("period", "flashes"), [(2, 8), (4, 4), (16, 1)])
def test_flashes_of_a_second(period, flashes):
    bright = (np.arange(48) % period) < period // 2
    frames = np.where(bright[:, None, None, None], 200, 60) * np.ones((48, 8, 8, 3))
    found = most_flashes(frames.astype(np.uint8), 16)
    assert abs(found - flashes) <= 1
    assert strobes(frames.astype(np.uint8), 16) is (found > 3)


def test_turning_and_slow_fades_are_no_flashes():
    assert most_flashes(render(np.arange(0, 120, 3.0)), 16) <= 2
    fade = np.linspace(20, 230, 48)[:, None, None, None] * np.ones((1, 8, 8, 3))
    assert most_flashes(fade.astype(np.uint8), 16) == 0
