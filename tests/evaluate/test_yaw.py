"""The yaw estimator, against frames whose turn is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.evaluate.panorama import K, render
from worldline.evaluate.yaw import expansion_between, yaw_between
from worldline.schema import ShapeError


def test_known_turns_are_found_to_a_tenth_of_a_degree():
    turns = np.array([0.0, 0.3, -0.7, 1.0, 2.0, -2.0, 3.0, -4.6, 6.2, -7.9])
    assert np.abs(yaw_between(render(np.concatenate([[10], 10 + np.cumsum(turns)])), K) - turns).max() < 0.1


def test_blurred_frames_are_measured_nearly_as_well():
    turns = np.tile([2.0, -2.0, 0.0], 4)
    frames = render(np.concatenate([[0], np.cumsum(turns)]))
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 3) for f in frames])
    assert np.abs(yaw_between(blurred, K) - turns).mean() < 0.15


def test_a_turn_right_is_positive_and_reversed_film_negates_it():
    frames = render(np.arange(0, 12, 2.0))
    assert np.allclose(yaw_between(frames, K), 2, atol=0.1)
    assert np.allclose(yaw_between(frames[::-1], K), -2, atol=0.1)


def test_blank_frames_have_not_turned():
    assert yaw_between(np.full((3, 64, 96, 3), 90, np.uint8), K).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("growth", [-0.03, 0.0, 0.02])
def test_expansion_beside_a_turn_is_found(growth):
    before, after = render(np.array([0.0, 2.0]))
    grown = cv2.warpAffine(after, cv2.getRotationMatrix2D((47.5, 31.5), 0, 1 + growth), (96, 64), flags=cv2.INTER_CUBIC)
    found = expansion_between(np.stack([before, grown]), K, np.array([2.0]))
    assert found[0] == pytest.approx(growth, abs=0.004)


def test_other_arrays_are_refused():
    with pytest.raises(ShapeError, match="uint8"):
        yaw_between(np.zeros((2, 64, 96, 3)), K)
    with pytest.raises(ShapeError, match="expected 1"):
        expansion_between(np.zeros((2, 64, 96, 3), np.uint8), K, np.zeros(2))
