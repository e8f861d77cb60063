"""Overlap of frusta against a dense grid of rays, and against what trigonometry says of pure rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.functional.camera import rotation_pitch, rotation_yaw
from worldline.functional.overlap import fov_overlap, spread_points

K = torch.tensor([0.44, 0.67, 0.5, 0.5], dtype=torch.float64)
NEAR, FAR = 0.1, 2.0


def pose(yaw: float = 0.0, pitch: float = 0.0, at=(0.0, 0.0, 0.0)) -> np.ndarray:
    c2w = np.eye(4)
    c2w[:3, :3] = rotation_yaw(yaw) @ rotation_pitch(pitch)
    c2w[:3, 3] = at
    return c2w


def overlap(a: np.ndarray, others: list[np.ndarray], lens=K, other_lens=K, **changes) -> np.ndarray:
    w2c, into = (torch.from_numpy(np.linalg.inv(np.stack(x))) for x in ([a], others))
    given = {"near": NEAR, "far": FAR, "points": 4096, **changes}
    return fov_overlap(w2c, lens[None], into, other_lens.expand(len(others), 4), **given)[0].numpy()


def dense(a: np.ndarray, b: np.ndarray, lens: np.ndarray, n: int = 96) -> float:
    """The share by definition: a grid of pixels and depths of a, each point asked whether b has it in its picture."""
    u = (np.arange(n) + 0.5) / n
    U, V, Z = np.meshgrid(u, u, NEAR + (FAR - NEAR) * u, indexing="ij")
    fx, fy, cx, cy = lens
    p = np.stack([(U - cx) / fx * Z, (V - cy) / fy * Z, Z, np.ones_like(Z)], -1) @ (np.linalg.inv(b) @ a).T
    x, y, z = p[..., 0], p[..., 1], p[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        s, t = fx * x / z + cx, fy * y / z + cy
    return float(((z > 0) & (z <= FAR) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)).mean())


def test_overlap_is_what_a_dense_grid_counts():
    rng = np.random.default_rng(0)
    poses = [pose(rng.uniform(-180, 180) * (i % 2), rng.uniform(-20, 20), rng.normal(size=3) * 0.4) for i in range(24)]
    a = pose(20.0, 5.0, (0.1, 0.0, -0.2))
    wanted = [dense(a, b, K.numpy()) for b in poses]
    np.testing.assert_allclose(overlap(a, poses), wanted, atol=0.01)
    np.testing.assert_allclose(overlap(a, poses, points=256), wanted, atol=0.05)  # as few as a policy looks at
    assert 0.0 < np.mean(wanted) < 0.9
    assert min(wanted) == 0.0


def test_a_turn_on_the_spot_overlaps_as_trigonometry_says():
    """Of what a flat camera (no height) of half angle a sees, one with height turned by b <= 2 a has the rays t = tan(angle) in
    [tan(b - a), tan a] of 2 tan a in sight. One at t gets g = cos b + t sin b times as deep, past tan(b / 2) its end, 1 - 1 / g
    of it, is too far. So (tan(b / 2) - tan(b - a) + log(cos(b - a) / cos a) / sin b) / (2 tan a)."""
    flat = torch.tensor([0.44, 1e6, 0.5, 0.5], dtype=torch.float64)
    a, turns = np.arctan(0.5 / 0.44), np.arange(7.0, 130.0, 7.0)
    b = np.minimum(np.deg2rad(turns), 2 * a)
    wanted = (np.tan(b / 2) - np.tan(b - a) + np.log(np.cos(b - a) / np.cos(a)) / np.sin(b)) / (2 * np.tan(a))
    assert wanted[0] > 0.85
    assert wanted[-1] == pytest.approx(0.0, abs=1e-9)
    for sign in (-1, 1):
        got = overlap(pose(), [pose(sign * t) for t in turns], flat, near=1e-6)
        np.testing.assert_allclose(got, wanted, atol=5e-3)


def test_no_world_frame_no_scale_no_order():
    rng = np.random.default_rng(1)
    poses = [pose(rng.uniform(-90, 90), rng.uniform(-20, 20), rng.normal(size=3) * 0.5) for _ in range(12)]
    a, moved = poses[0], pose(77.0, -13.0, (3.0, -1.0, 2.0))
    base = overlap(a, poses)
    np.testing.assert_allclose(overlap(moved @ a, [moved @ p for p in poses]), base, atol=2e-3)

    def scaled(p: np.ndarray, by: float) -> np.ndarray:
        return np.block([[p[:3, :3], by * p[:3, 3:]], [p[3:]]])

    wide = overlap(scaled(a, 5.0), [scaled(p, 5.0) for p in poses], near=5 * NEAR, far=5 * FAR)
    np.testing.assert_allclose(wide, base, atol=2e-3)
    same_far = overlap(scaled(a, 5.0), [scaled(p, 5.0) for p in poses])
    assert np.abs(same_far - base).max() > 0.1, "depths are in the units of the poses"
    np.testing.assert_array_equal(overlap(a, poses[::-1]), base[::-1])
    np.testing.assert_array_equal(overlap(a, poses), base)


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5), (0.2, 0.9, 0.4), (0.07, 1.0, 1.0)])
def test_points_are_spread_evenly_and_always_the_same(box):
    points = spread_points(256)
    assert float((points < torch.tensor(box)).all(dim=-1).double().mean()) == pytest.approx(np.prod(box), abs=0.03)
    torch.testing.assert_close(points[:64], spread_points(64), atol=0, rtol=0)


def test_many_cameras_are_compared_in_parts(monkeypatch):
    poses = [pose(float(t)) for t in range(0, 90, 5)]
    whole = overlap(poses[0], poses, points=64)
    monkeypatch.setattr("worldline.functional.overlap.PAIRS", 4)
    np.testing.assert_array_equal(overlap(poses[0], poses, points=64), whole)
