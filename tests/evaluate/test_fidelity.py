"""PSNR and skill."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldline.evaluate.fidelity import CAP_DB, psnr, skill
from worldline.schema import ShapeError


def test_psnr_of_a_known_error_frame_by_frame():
    a = np.full((2, 3, 8, 8, 3), 100, np.uint8)
    b = a.copy()
    b[0, 1] += 10
    b[1, 2] -= 100
    expected = np.full((2, 3), CAP_DB)
    expected[0, 1], expected[1, 2] = 20 * math.log10(255 / 10), 20 * math.log10(255 / 100)
    assert np.allclose(psnr(a, b), expected)


def test_psnr_agrees_with_skimage():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b))


def test_nothing_is_cut_to_fit():
    with pytest.raises(ShapeError, match="expected two"):
        psnr(np.zeros((5, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ShapeError, match="float"):
        psnr(np.zeros((8, 8, 3)), np.zeros((8, 8, 3)))


def test_skill_is_zero_at_the_floor_and_one_at_the_ceiling():
    assert (skill(15, 15, 30), skill(30, 15, 30), skill(10, 15, 30)) == (0, 1, pytest.approx(-1 / 3))
    assert math.isnan(skill(20, 30, 25))
