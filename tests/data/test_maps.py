"""Maps and textures: deterministic, walkable, and true to what the caption says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from worldline.data.sources.doomrooms.maps import CELL, generate, largest_component, udmf, write_wad
from worldline.data.sources.doomrooms.textures import COLOURS, texture_set

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_map_is_one_walkable_place_behind_solid_walls(seed):
    level = generate(seed)
    free = level.cells >= 0
    border = np.concatenate([level.cells[0], level.cells[-1], level.cells[:, 0], level.cells[:, -1]])
    assert (border < 0).all()
    assert largest_component(level.cells).sum() > 0.9 * free.sum()
    assert free.sum() > 100


@pytest.mark.parametrize("seed", SEEDS)
def test_walls_have_their_room_on_the_right(seed):
    level = generate(seed)
    for x1, y1, x2, y2 in level.walls():
        mid, along = np.array([x1 + x2, y1 + y2]) / 2, np.array([x2 - x1, y2 - y1]) / CELL
        right = np.array([along[1], -along[0]])
        assert level.room_at(*(mid + 8 * right)) >= 0
        assert level.room_at(*(mid - 8 * right)) < 0


def test_same_seed_same_map_other_seed_other_map(tmp_path):
    write_wad(str(tmp_path / "a.wad"), generate(3))
    write_wad(str(tmp_path / "b.wad"), generate(3))
    assert (tmp_path / "a.wad").read_bytes() == (tmp_path / "b.wad").read_bytes()
    assert udmf(generate(3)) != udmf(generate(4))


def test_every_texture_a_map_names_is_shipped():
    ours = set(texture_set())
    for seed in SEEDS:
        named = set(re.findall(r'texture\w+ ?= ?"(\w+)"', udmf(generate(seed))))
        assert named <= ours
    assert all(len(name) <= 8 for name in ours)


def test_stored_textures_are_powers_of_two():
    """The game reads past textures of any other height."""
    for name, image in texture_set().items():
        assert all(n & (n - 1) == 0 for n in image.shape[:2]), name
        assert image.dtype == np.uint8


def test_captions_use_the_words_of_the_room():
    level = generate(5)
    for index, room in enumerate(level.rooms):
        cells = np.argwhere(level.cells == index)
        if len(cells):
            y, x = cells[0]
            text = level.caption((x + 0.5) * CELL, (y + 0.5) * CELL)
            assert room.colour in text
            assert f"{room.floor_colour} {room.floor} floor" in text
            assert room.colour in COLOURS
