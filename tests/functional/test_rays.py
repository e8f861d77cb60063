"""Pluecker rays against closed forms."""

from __future__ import annotations

import torch

from worldline.functional.rays import plucker_rays


def test_rays_of_a_known_camera():
    w2c = torch.eye(4).repeat(1, 2, 1, 1)
    w2c[0, 1, :3, 3] = torch.tensor([0.0, 0.0, -2.0])  # the second camera stands two ahead
    K = torch.tensor([0.5, 1.0, 0.5, 0.5]).repeat(1, 2, 1)
    rays = plucker_rays(w2c, K, rows=3, cols=5)
    assert rays.shape == (1, 2, 6, 3, 5)
    torch.testing.assert_close(rays[0, :, :3].norm(dim=1), torch.ones(2, 3, 5))
    torch.testing.assert_close(rays[0, 0, :3, 1, 2], torch.tensor([0.0, 0.0, 1.0]))  # the middle cell looks ahead
    corner = torch.tensor([(0.1 - 0.5) / 0.5, (1 / 6 - 0.5) / 1.0, 1.0])
    torch.testing.assert_close(rays[0, 0, :3, 0, 0], corner / corner.norm())
    assert rays[0, 0, 3:].abs().max() == 0  # through the origin there is no moment
    o, d = torch.tensor([0.0, 0.0, 2.0]), rays[0, 1, :3, 0, 0]
    torch.testing.assert_close(rays[0, 1, 3:, 0, 0], torch.linalg.cross(o, d))


def test_a_point_on_the_ray_projects_to_its_cell(cameras):
    poses = cameras(1, 4, seed=3)
    rays = plucker_rays(poses.w2c.double(), poses.K.double(), rows=4, cols=6)
    d, m = rays[0, :, :3, 2, 4], rays[0, :, 3:, 2, 4]
    point = torch.linalg.cross(d, m) + 3 * d  # the ray's point nearest the origin, then along it
    seen = torch.einsum("tij,tj->ti", poses.w2c[0, :, :3, :3].double(), point) + poses.w2c[0, :, :3, 3].double()
    uv = seen[:, :2] / seen[:, 2:] * poses.K[0, :, :2].double() + poses.K[0, :, 2:].double()
    ahead = seen[:, 2] > 0
    assert ahead.any()
    expected = torch.tensor([4.5 / 6, 2.5 / 4], dtype=torch.float64).expand_as(uv)
    torch.testing.assert_close(uv[ahead], expected[ahead], atol=1e-5, rtol=1e-5)
