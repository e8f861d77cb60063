"""Turning fields against the homography they stand for."""

from __future__ import annotations

import math

import torch

from worldline.functional.warp import turning_field, yaw_of

K = torch.tensor([0.45, 0.67, 0.5, 0.5])


def test_a_turn_moves_the_centre_by_its_tangent_and_is_undone_by_its_opposite():
    turn = torch.tensor([0.0, 0.1, -0.1])
    field = turning_field(turn, K, 9, 15)
    assert field.shape == (3, 2, 9, 15)
    torch.testing.assert_close(field[0], torch.zeros(2, 9, 15))
    # What is ahead after turning right by a lay a to the right before: tan(a) fx of the width, in shares of half of it.
    torch.testing.assert_close(field[1, 0, 4, 7].item(), 2 * 0.45 * math.tan(0.1), atol=1e-6, rtol=0)
    torch.testing.assert_close(field[2, 0], -field[1, 0].flip(-1), atol=1e-6, rtol=0)


def test_heading_is_positive_to_the_right():
    c2w = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    for i, degrees in enumerate((10.0, 4.0)):  # the engine counts counter-clockwise
        c2w[i, :2, 2] = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    yaw = yaw_of(c2w)
    torch.testing.assert_close((yaw[1] - yaw[0]).item(), math.radians(6.0), atol=1e-6, rtol=0)
