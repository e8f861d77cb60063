"""Camera paths: formulas by their invariances, estimators on rooms rendered from known cameras."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from tests.evaluate.room import K, poses, render
from worldline.evaluate.metrics.pose import (
    angle_deg,
    ate,
    cam_mc,
    rotation_errors_deg,
    rpe,
    translation_errors,
    umeyama,
)
from worldline.evaluate.metrics.rotation import rotations
from worldline.evaluate.pose_tier import PoseUnavailable, estimate, pose_errors, structure_from_motion
from worldline.functional.camera import rotation_pitch, rotation_yaw
from worldline.schema import ShapeError


def walk(seed: int, F: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return poses(np.cumsum(rng.normal(0, 4, F)), np.cumsum(rng.normal(0, 0.3, (F, 3)), axis=0))


def motion(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    G = np.eye(4)
    G[:3, :3] = rotation_yaw(float(rng.uniform(-90, 90))) @ rotation_pitch(float(rng.uniform(-40, 40)))
    G[:3, 3] = rng.normal(0, 3, 3)
    return G


def test_equal_paths_do_not_differ_whatever_world_they_are_in():
    a, G = walk(0), motion(1)
    for error in (rotation_errors_deg(G @ a, a), translation_errors(G @ a, a), cam_mc(G @ a, a), *rpe(G @ a, a)):
        assert np.abs(error).max() < 1e-6
    assert ate(G @ a, a) < 1e-6


def test_rotation_errors_are_symmetric_and_those_planted():
    a, b = walk(0), walk(0)
    b[5:, :3, :3] = b[5:, :3, :3] @ rotation_yaw(3.0)
    assert rotation_errors_deg(b, a)[4:] == pytest.approx(3)
    assert rotation_errors_deg(b, a)[:4] == pytest.approx(0, abs=1e-6)
    assert np.allclose(rotation_errors_deg(a, b), rotation_errors_deg(b, a))
    assert angle_deg(rotation_yaw(1e-5)) == pytest.approx(1e-5, rel=1e-3)


def test_relative_errors_hide_scale_and_absolute_ones_do_not():
    a, b = walk(2), walk(2)
    b[:, :3, 3] *= 2.5
    assert translation_errors(b, a, relative=True).max() < 1e-9
    assert cam_mc(b, a).max() < 1e-9
    assert translation_errors(b, a).max() > 0.5
    assert ate(b, a) < 1e-9 < ate(b, a, scale=False)
    still = np.tile(np.eye(4), (12, 1, 1))
    assert np.isnan(translation_errors(still, a, relative=True)).all()


def test_umeyama_recovers_a_random_similarity():
    rng, G = np.random.default_rng(3), motion(4)
    source = rng.normal(0, 2, (30, 3))
    s, R, t = umeyama(source, 0.7 * source @ G[:3, :3].T + G[:3, 3])
    assert s == pytest.approx(0.7)
    assert np.allclose(R, G[:3, :3])
    assert np.allclose(t, G[:3, 3])


def test_one_wrong_step_is_one_wrong_step():
    a, b = walk(5), walk(5)
    b[7:] = b[7:, :, :]
    kick = motion(6)
    b[7:] = b[6] @ kick @ np.linalg.inv(b[6]) @ b[7:]
    t, r = rpe(b, a)
    assert np.flatnonzero(r > 1e-6).tolist() == [6]
    assert np.flatnonzero(t > 1e-6).tolist() == [6]
    with pytest.raises(ShapeError, match="12"):
        rpe(a, a, delta=12)


def test_a_pan_is_a_rotation_to_a_hundredth_of_a_degree_a_pair():
    yaw = np.arange(0, 49, 1.0)
    truth = poses(yaw, np.zeros((len(yaw), 3)))
    found = rotations(render(truth[::4]), K, stride=1)
    steps = np.swapaxes(found.R[:-1], 1, 2) @ found.R[1:]
    true = np.swapaxes(truth[:-4:4, :3, :3], 1, 2) @ truth[4::4, :3, :3]
    assert angle_deg(np.swapaxes(true, 1, 2) @ steps).max() <= 0.01
    assert found.inliers.min() > 0.9


def test_a_pan_is_told_from_an_arc_and_a_blank_clip_from_both():
    yaw = np.linspace(0, 24, 7)
    pan = estimate(render(poses(yaw, np.zeros((7, 3)))), K, stride=1)
    assert pan.estimator == "rotation"
    assert pose_errors(pan, poses(yaw, np.zeros((7, 3))))["rot_err_deg"] < 0.05
    arc = rotations(render(poses(yaw, np.linspace([0, 0, -1], [0.9, 0, 0.4], 7))), K, stride=1)
    assert np.median(arc.inliers) < 0.7
    assert rotations(np.full((3, 64, 96, 3), 128, np.uint8), K, stride=1) is None


def test_without_the_optional_package_the_reason_is_said(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "pycolmap":
            raise ImportError("No module named 'pycolmap'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(PoseUnavailable, match="pip install pycolmap"):
        structure_from_motion(np.zeros((4, 64, 96, 3), np.uint8), K)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_arc_is_recovered_to_a_twentieth_of_a_degree():
    pytest.importorskip("pycolmap")
    yaw = np.linspace(0, 48, 49)
    truth = poses(yaw, np.linspace([-0.8, 0, -1.2], [1.0, 0.1, 0.6], 49))
    found = estimate(render(truth), K, stride=3)
    assert found.estimator == "sfm"
    assert found.registered == 1
    errors = pose_errors(found, truth)
    assert errors["rot_err_deg"] <= 0.05
    assert errors["trans_err"] < 0.01
