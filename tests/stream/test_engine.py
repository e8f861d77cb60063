"""A world directory: what is read, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_world import HEIGHT, WIDTH, write_tiny_world

from worldline.schema import Controls, WorldlineError
from worldline.stream.engine import Engine
from worldline.stream.world import WorldConfig, fit


def test_a_world_is_read_as_written(engine, world_dir, tmp_path):
    config = WorldConfig.read(world_dir)
    config.write(tmp_path)
    assert WorldConfig.read(tmp_path) == config
    spec = engine.spec
    assert (spec.frames_per_chunk, spec.steps, spec.window, spec.fps) == (4, 2, 4, 16.0)
    assert list(engine.starts) == ["hall", "cellar"]


def test_loading_warms_up_and_leaves_a_usable_engine(world_dir):
    threads = torch.get_num_threads()
    try:
        engine = Engine.load(world_dir)
        assert engine.session().step(Controls.still(4)).shape == (4, HEIGHT, WIDTH, 3)
    finally:
        torch.set_num_threads(threads)


def test_half_precision_stays_close(world_dir):
    full, half = (Engine.load(world_dir, dtype=d, threads=1, warm=False) for d in ("float32", "bfloat16"))
    frames = [e.session("hall").step(Controls.still(4)).astype(int) for e in (full, half)]
    assert 0 < np.abs(frames[0] - frames[1]).mean() < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fsp": 16}, "did you mean fps"),
        ({"move_scale": None}, "lacks"),
        ({"visibility": {"chunk": 1, "window": 4, "prefix": 0}}, "one given image"),
        ({"visibility": {"chunk": 1, "window": None, "prefix": 1}}, "bounded past"),
        ({"visibility": {"chunks": 1}}, "not readable"),
        ({"sigmas": [0.5, 0.7]}, "descending"),
        ({"codec": "nowhere"}, "no config.json"),
        ({"codec": "."}, "expected a codec"),
        ({"fps": 0}, "above 0"),
    ],
)
def test_a_wrong_world_file_is_named(tmp_path, change, message):
    world = write_tiny_world(tmp_path)
    raw = json.loads((world / "world.json").read_text())
    raw.update(change)
    (world / "world.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(WorldlineError, match=message):
        Engine.load(world, warm=False)


def test_a_missing_world_and_a_missing_start_are_named(tmp_path):
    with pytest.raises(WorldlineError, match=r"no world\.json"):
        Engine.load(tmp_path)
    world = write_tiny_world(tmp_path)
    (tmp_path / "starts" / "hall.png").unlink()
    with pytest.raises(WorldlineError, match="add the image"):
        Engine.load(world, warm=False)


def test_start_images_are_checked(engine, tmp_path):
    with pytest.raises(WorldlineError, match="expected one of"):
        engine.session("attic")
    with pytest.raises(WorldlineError, match="fit"):
        engine.session(np.zeros((8, 8, 3), np.uint8))
    picture = np.asarray(Image.new("RGB", (301, 97), (200, 10, 10)))
    fitted = fit(picture, HEIGHT, WIDTH)
    assert fitted.shape == (HEIGHT, WIDTH, 3)
    assert engine.session(fitted, "a red room").step(Controls.still(4)).shape[0] == 4
    engine.starts = {}
    with pytest.raises(WorldlineError, match="no start images"):
        engine.session()
