"""Reading clips back."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.data.dataset import ClipDataset, open_dataset
from worldline.schema import TimeGrid, WorldlineError


def test_a_clip_is_whole(dataset: ClipDataset):
    clip = dataset[0]
    assert clip.frames.shape == (29, 64, 96, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.cameras.c2w.shape == (29, 4, 4)
    assert len(clip.controls) == 29
    assert not clip.controls.move[-1].any()  # nothing follows the last frame
    assert clip.controls.keys[-1] == ()
    assert TimeGrid(4).latent_frames(len(clip.frames)) == 8
    assert clip.frames.std() > 5
    R = clip.cameras.c2w[:, :3, :3]
    assert np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
    # square pixels: the focal lengths agree once put back into pixels
    fx, fy = clip.cameras.K[0, 0] * 96, clip.cameras.K[0, 1] * 64
    assert fx == pytest.approx(fy)


def test_splits_are_by_map(dataset: ClipDataset):
    train, heldout = dataset.split("train"), dataset.split("heldout")
    assert (len(train), len(heldout)) == (8, 4)
    assert not {train[i].map_seed for i in range(8)} & {heldout[i].map_seed for i in range(4)}
    assert heldout[0].split == "heldout"
    with pytest.raises(WorldlineError, match=r"'test' .* is empty; it has \['heldout', 'train'\]"):
        dataset.split("test")


def test_move_scale_is_nominal(dataset: ClipDataset):
    assert dataset.move_scale == pytest.approx(0.005)


def test_a_missing_dataset_says_how_to_make_one(tmp_path):
    with pytest.raises(WorldlineError, match="worldline data build"):
        open_dataset(tmp_path)
