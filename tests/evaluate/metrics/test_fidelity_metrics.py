"""SSIM against scikit-image; tolerant and exposure-matched PSNR against planted delays, shifts and fades."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluate.panorama import render
from worldline.evaluate.fidelity import psnr
from worldline.evaluate.metrics.exposure import exposure_psnr
from worldline.evaluate.metrics.ssim import ssim
from worldline.evaluate.metrics.tolerant import neighbour_psnr, tolerant_psnr
from worldline.schema import ShapeError


@pytest.fixture(scope="module")
def turning() -> np.ndarray:
    """A view that turns, stops and turns back: no two frames far apart are alike."""
    turns = np.concatenate([np.full(16, 2.0), np.full(8, 3.0), np.full(8, -1.5)])
    return render(np.concatenate([[0], np.cumsum(turns)]))


def noisy(frames: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, frames.shape)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2, 25])
@pytest.mark.parametrize("size", [(64, 96), (48, 48), (11, 20)])
def test_ssim_equals_scikit_image(turning, sigma, size):
    metrics = pytest.importorskip("skimage.metrics")
    a = turning[:3, : size[0], : size[1]]
    b = noisy(a, sigma)
    theirs = [
        metrics.structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert np.abs(ssim(a, b) - theirs).max() < 1e-4
    assert 0.05 < ssim(a, b).mean() < 1


def test_ssim_is_one_for_equals_symmetric_and_refuses_small_frames(turning):
    a, b = turning[:2], noisy(turning[:2], 20)
    assert np.allclose(ssim(a, a), 1)
    assert np.allclose(ssim(a, b), ssim(b, a))
    with pytest.raises(ShapeError, match="11"):
        ssim(a[:, :8], b[:, :8])


def test_tolerant_is_never_below_strict_and_equal_for_equals(turning):
    b = noisy(turning, 15)
    assert (tolerant_psnr(b, turning).psnr >= psnr(b, turning) - 1e-6).all()
    same = tolerant_psnr(turning, turning)
    assert np.allclose(same.psnr, 60, atol=1e-6)
    assert not same.delay.any()
    assert not same.shift.any()


@pytest.mark.parametrize("late", [3, -2])
def test_a_delay_is_forgiven_and_named(turning, late):
    shown = np.roll(turning, late, axis=0)
    inner = slice(8, 16)
    found = tolerant_psnr(shown, turning)
    assert np.allclose(found.psnr[inner], 60, atol=1e-6)
    assert (found.delay[inner] == late).all()
    assert psnr(shown, turning)[inner].max() < 35


@pytest.mark.parametrize("shift", [5, -9])
def test_a_sideways_shift_is_forgiven_and_named(turning, shift):
    found = tolerant_psnr(np.roll(turning, shift, axis=2), turning)
    assert np.allclose(found.psnr, 60, atol=1e-6)
    assert (found.shift == shift).all()
    beyond = tolerant_psnr(np.roll(turning, 30, axis=2), turning)
    assert np.median(beyond.psnr) < 30


def test_another_world_is_not_forgiven(turning):
    other = render(np.linspace(0, 60, len(turning)), seed=5)
    assert tolerant_psnr(other, turning).psnr.max() < 25


def test_clips_of_two_lengths_are_refused(turning):
    for metric in (ssim, tolerant_psnr, exposure_psnr):
        with pytest.raises(ShapeError, match="expected"):
            metric(turning[:-1], turning)


def test_exposure_psnr_forgives_a_fade_and_not_a_blur_or_a_blank(turning):
    faded = (turning * np.array([0.8, 0.9, 0.7]) + 12).round().astype(np.uint8)
    assert psnr(faded, turning).mean() < 24
    assert exposure_psnr(faded, turning).mean() > 45
    wrong = np.roll(turning, 9, axis=2)
    assert np.abs(exposure_psnr(wrong, turning) - psnr(wrong, turning)).max() < 3
    assert exposure_psnr(np.full_like(turning, 128), turning).max() < 25


def test_neighbours_of_a_turning_view_are_near_and_of_a_cut_far(turning):
    near = neighbour_psnr(turning)
    cut = neighbour_psnr(np.concatenate([turning[:10], render(np.zeros(10), seed=9)]))
    assert near.min() > 19
    assert cut[9] < near.min() - 4
