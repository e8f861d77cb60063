"""The contact sheet shows the clips that are there."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from worldline.data.dataset import ClipDataset
from worldline.data.inspect import ZOOM, birds_eye, contact_sheet, film_strip
from worldline.data.sources.doomrooms.maps import generate
from worldline.schema import WorldlineError


def test_sheet_has_a_row_a_clip(dataset: ClipDataset, tmp_path):
    few, more = (Image.open(contact_sheet(dataset, tmp_path / f"{n}.png", clips=n, frames=4)) for n in (1, 3))
    assert more.height == 3 * few.height
    assert more.width >= 4 * 96 * ZOOM
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


def test_strip_shows_the_first_and_last_frame(dataset: ClipDataset):
    clip = dataset[1]
    strip = np.asarray(film_strip(clip, 3)).astype(int)
    width = 96 * ZOOM
    for slot, t in ((0, 0), (2, len(clip.frames) - 1)):
        shown = strip[: -10 * ZOOM, slot * width : (slot + 1) * width][ZOOM // 2 :: ZOOM, ZOOM // 2 :: ZOOM]
        assert np.abs(shown - clip.frames[t][: len(shown)]).mean() < 4


def test_birds_eye_marks_the_start(dataset: ClipDataset):
    clip = dataset[0]
    image = np.asarray(birds_eye(clip, generate(clip.map_seed), 200)).astype(int)
    dark = np.abs(image - (60, 58, 56)).sum(axis=-1) < 10
    assert dark.sum() > 30
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 3


def test_nonsense_sizes_are_refused(dataset: ClipDataset, tmp_path):
    with pytest.raises(WorldlineError, match="at least 1 x 2"):
        contact_sheet(dataset, tmp_path / "x.png", frames=1)
