"""Camera rates by direct alignment, on pictures moved by known amounts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.evaluate.panorama import K, render
from worldline.evaluate.metrics.motion import rates
from worldline.schema import ShapeError

H, W = 64, 96


def moved(frame: np.ndarray, forward: float = 0.0, strafe: float = 0.0, pitch_deg: float = 0.0) -> np.ndarray:
    """The next view of a scene whose inverse depth is 1 + |Y|: the picture a pixel at a time from where it came."""
    x, y = np.meshgrid(np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32))
    X, Y = (x - (K[2] * W - 0.5)) / (K[0] * W), (y - (K[3] * H - 0.5)) / (K[1] * H)
    q, p = 1 + np.abs(Y), np.deg2rad(pitch_deg)
    u = q * X * forward - q * strafe + X * Y * p
    v = q * Y * forward + (1 + Y**2) * p
    return cv2.remap(
        frame, (x - u * K[0] * W).astype(np.float32), (y - v * K[1] * H).astype(np.float32), cv2.INTER_CUBIC
    )


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return render(np.array([37.0]), seed=2)[0]


def typical() -> float:
    y = (np.arange(H)[None].repeat(W, 0) - (K[3] * H - 0.5)) / (K[1] * H)
    return 1 + float(np.abs(y).mean())


@pytest.mark.parametrize("yaw", [0.0, 2.0, -3.0])
def test_turning_is_yaw_alone(yaw):
    found = rates(render(np.array([0.0, yaw])), K)[0]
    assert found[0] == pytest.approx(yaw, abs=0.1)
    assert np.abs(found[1:]).max() < 0.05
    assert np.abs(found[2:]).max() < 0.006


@pytest.mark.parametrize("forward", [0.03, -0.02])
def test_growth_is_forward_alone(frame, forward):
    found = rates(np.stack([frame, moved(frame, forward=forward)]), K)[0]
    assert found[2] == pytest.approx(forward * typical(), rel=0.15)
    assert abs(found[0]) < 0.2
    assert abs(found[3]) < 0.004


@pytest.mark.parametrize("strafe", [0.02, -0.03])
def test_sideways_motion_is_strafe_and_not_a_turn(frame, strafe):
    found = rates(np.stack([frame, moved(frame, strafe=strafe)]), K)[0]
    assert found[3] == pytest.approx(strafe * typical(), rel=0.3)
    assert abs(found[2]) < 0.006


@pytest.mark.parametrize("pitch", [1.5, -2.0])
def test_looking_up_is_pitch(frame, pitch):
    found = rates(np.stack([frame, moved(frame, pitch_deg=pitch)]), K)[0]
    assert found[1] == pytest.approx(pitch, abs=0.2)


def test_a_change_of_level_is_no_motion(frame):
    brighter = (frame * 0.9 + 5).round().astype(np.uint8)
    found = rates(np.stack([frame, brighter]), K)[0]
    assert np.abs(found[:2]).max() < 0.15
    assert np.abs(found[2:]).max() < 0.004


def test_blank_frames_do_not_move_and_lengths_must_agree():
    blank = np.full((3, H, W, 3), 90, np.uint8)
    assert not rates(blank, K).any()
    with pytest.raises(ShapeError, match="expected 2"):
        rates(blank, K, yaw=np.zeros(3))
