"""Warp error, flicker and cuts: blind to motion, and each sees its own fault."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.evaluate.panorama import render
from worldline.evaluate.metrics.flow import dense_flow
from worldline.evaluate.metrics.steadiness import cuts, flicker, warp_error

HEADINGS = np.cumsum(np.tile([2.0, 2.0, 1.0, 0.0, -2.0, -1.0], 5))


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    return render(HEADINGS)


def flickering(frames: np.ndarray, share: float) -> np.ndarray:
    sign = np.where(np.arange(len(frames)) % 2, 1 + share, 1 - share)
    return (frames * sign[:, None, None, None]).round().clip(0, 255).astype(np.uint8)


def boiling(frames: np.ndarray, pixels: float, seed: int = 0) -> np.ndarray:
    rng, (H, W) = np.random.default_rng(seed), frames.shape[1:3]
    x, y = np.meshgrid(np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32))
    out = []
    for frame in frames:
        dx, dy = (cv2.GaussianBlur(rng.normal(0, 1, (H, W)).astype(np.float32), (0, 0), 3) for _ in range(2))
        scale = pixels / max(float(np.std(dx)), 1e-6)
        out.append(cv2.remap(frame, x + dx * scale, y + dy * scale, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))
    return np.stack(out)


def error(frames: np.ndarray) -> float:
    return float(np.nanmean(warp_error(dense_flow(frames))))


def test_fast_and_slow_motion_have_the_same_small_error(moving):
    # Neighbouring frames differ by several grey levels; along the flow they hardly do.
    plain = np.abs(np.diff(moving.astype(float), axis=0)).mean()
    assert error(moving) < 0.4 * plain
    assert error(render(0.5 * HEADINGS)) < error(moving) + 0.5


def test_a_still_clip_has_none():
    still = render(np.zeros(6))
    assert error(still) == 0
    assert flicker(still, dense_flow(still)) == 0
    assert len(cuts(still)) == 0


def test_flicker_is_seen_and_measured(moving):
    clean, spoilt = (flicker(f, dense_flow(f)) for f in (moving, flickering(moving, 0.05)))
    assert clean < 0.01
    # The level jumps by 0.1 of itself there and back: steps of +-0.1, whose difference is 0.2.
    assert spoilt == pytest.approx(0.2, rel=0.25)
    assert error(flickering(moving, 0.05)) > 1.3 * error(moving)


def test_boiling_raises_the_error_and_is_no_flicker(moving):
    spoilt = boiling(moving, 1.5)
    assert error(spoilt) > 1.3 * error(moving)
    assert flicker(spoilt, dense_flow(spoilt)) < 0.02


def test_a_steady_fade_is_no_flicker():
    fade = np.linspace(1, 0.5, 20)[:, None, None, None]
    frames = (render(np.zeros(20)) * fade).round().astype(np.uint8)
    assert flicker(frames, dense_flow(frames)) < 0.02


def test_cuts_are_found_where_they_are(moving):
    cut = np.concatenate([moving[:9], render(HEADINGS[:7], seed=8), moving[9:]])
    assert cuts(moving).tolist() == []
    assert cuts(cut).tolist() == [9, 16]


def test_the_size_of_the_picture_hardly_matters(moving):
    large = np.stack([cv2.resize(f, (384, 256), interpolation=cv2.INTER_CUBIC) for f in moving[:12]])
    assert error(large) < 2.5 * error(moving[:12])
    assert len(cuts(large)) == 0
