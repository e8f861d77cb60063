"""The types that flow: time arithmetic, gauges, and errors that name the value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldline.functional.camera import cameras_of_path
from worldline.schema import CameraPath, Cameras, ChunkPlan, Controls, ShapeError, TimeGrid, WorldlineError


@given(st.integers(1, 8), st.integers(1, 60))
def test_every_pixel_frame_belongs_to_one_latent(stride, latents):
    grid = TimeGrid(stride)
    covered = [p for k in range(latents) for p in grid.pixels_of(k)]
    assert covered == list(range(grid.pixel_frames(latents)))
    assert grid.latent_frames(len(covered)) == latents
    driven = [a for k in range(latents) for a in grid.actions_of(k)]
    assert driven == list(range(len(covered) - 1))
    for k in range(1, latents):
        assert grid.pose_frame(k) == grid.pixels_of(k)[-1] == grid.actions_of(k)[-1] + 1


def test_published_lengths():
    grid = TimeGrid(4)
    assert [grid.latent_frames(f) for f in (1, 5, 77, 81)] == [1, 2, 20, 21]
    with pytest.raises(WorldlineError, match="cut the clip to 77 frames"):
        grid.latent_frames(80)


def test_chunks_after_a_prefix():
    assert ChunkPlan(7, chunk=3, prefix=1).chunks() == [(1, 4), (4, 7)]
    with pytest.raises(WorldlineError, match="use 7 latents"):
        ChunkPlan(8, chunk=3, prefix=1)


def walk() -> CameraPath:
    c2w = np.tile(np.eye(4), (9, 1, 1))
    c2w[:, 2, 3] = np.arange(9) + 5.0
    return CameraPath(c2w, np.array([0.5, 0.9, 0.5, 0.5]))


def test_gauge_scale_and_latents():
    path = walk().relative().scaled(0.1).of_latents(TimeGrid(4))
    assert path.c2w[:, 2, 3] == pytest.approx([0, 0.4, 0.8])
    cameras = cameras_of_path(path)
    assert cameras.w2c[0, :, 2, 3].tolist() == pytest.approx([0, -0.4, -0.8])
    assert cameras[1:2].w2c.shape == (1, 1, 4, 4)


def test_wrong_values_are_named():
    with pytest.raises(ShapeError, match="expected"):
        CameraPath(np.zeros((3, 3, 3)), np.zeros(4))
    with pytest.raises(WorldlineError, match="non-finite"):
        Controls(np.full((2, 3), np.nan), np.zeros((2, 3)))
    with pytest.raises(ShapeError, match="one row a frame"):
        Controls(np.zeros((2, 3)), np.zeros((2, 3)), (("w",),))
    with pytest.raises(ShapeError):
        Cameras(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2, 6))


def test_controls_join():
    joined = Controls.concat([Controls.still(2), Controls(np.ones((1, 3)), np.zeros((1, 3)), (("w",),))])
    assert len(joined) == 3
    assert joined[2:].keys == (("w",),)
