"""The camera model, proven: with exact depth and the recorded cameras, one frame predicts another."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.raycast import bilinear, depth, project, rays
from worldline.data.dataset import Clip, ClipDataset
from worldline.data.sources.doomrooms.maps import generate
from worldline.functional.camera import rotation_yaw

GAP = 12  # frames between the two views of a pair


def moving_pairs(dataset: ClipDataset) -> list[tuple[Clip, int, int]]:
    """Views GAP frames apart that differ by at least 12 degrees or 30 map units."""
    pairs = []
    for clip in (dataset[i] for i in range(len(dataset))):
        for i in range(0, len(clip.frames) - GAP, GAP // 2):
            motion = clip.cameras[[i, i + GAP]].relative().c2w[1]
            turned = np.degrees(np.arctan2(abs(motion[0, 2]), motion[2, 2]))
            if turned > 12 or np.linalg.norm(motion[:3, 3]) > 30:
                pairs.append((clip, i, i + GAP))
    return pairs[:16]


def warp(clip: Clip, i: int, j: int, wrong: np.ndarray, K_factor: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of frame i against frame j seen through the geometry, and against frame j as it is, on what both see."""
    level, (height, width) = generate(clip.map_seed), clip.frames.shape[1:3]
    K = clip.cameras.K[0] * (*K_factor, 1, 1)
    here, there = clip.cameras.c2w[i], clip.cameras.c2w[j] @ wrong
    near, far = depth(level, here, K, height, width), depth(level, there, K, height, width)
    points = here[:3, 3] + rays(here, K, height, width) * near[..., None]
    u, v, z = project(points, there, K, height, width)
    seen = (z > 1) & (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1)
    seen &= np.abs(bilinear(far, u, v) - z) < 0.02 * z
    a, b = clip.frames[i].astype(float), clip.frames[j].astype(float)
    return ((bilinear(b, u, v) - a) ** 2)[seen].ravel(), ((b - a) ** 2)[seen].ravel()


def psnr(errors: list[np.ndarray]) -> float:
    return float(10 * np.log10(255**2 / np.concatenate(errors).mean()))


@pytest.fixture(scope="module")
def score(dataset: ClipDataset):
    """(warped, unwarped) PSNR in dB over all pairs, for a camera made wrong on purpose."""
    pairs = moving_pairs(dataset)
    assert len(pairs) >= 12

    def of(wrong: np.ndarray | None = None, K_factor: tuple[float, float] = (1, 1)) -> tuple[float, float]:
        errors = [warp(*p, np.eye(4) if wrong is None else wrong, K_factor) for p in pairs]
        assert sum(len(e[0]) for e in errors) > 0.3 * 3 * len(pairs) * 64 * 96
        return psnr([e[0] for e in errors]), psnr([e[1] for e in errors])

    return of


def test_warped_frames_agree_and_unwarped_ones_do_not(score):
    warped, unwarped = score()
    assert warped >= 28
    assert unwarped <= 18


def test_one_degree_of_yaw_is_noticed(score):
    for degrees in (1.0, -1.0):
        wrong = np.eye(4)
        wrong[:3, :3] = rotation_yaw(degrees)
        assert score(wrong)[0] < score()[0] - 5


def test_eight_units_along_each_axis_are_noticed(score):
    for axis, least in ((0, 8), (1, 8), (2, 8)):
        wrong = np.eye(4)
        wrong[axis, 3] = 8
        assert score(wrong)[0] < score()[0] - least


def test_the_recorded_focal_length_is_the_best_one(score):
    best = score()[0]
    for factor in ((1.05, 1), (0.95, 1), (1.05, 1.05), (0.95, 0.95)):
        assert score(K_factor=factor)[0] < best - 2
