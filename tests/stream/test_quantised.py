"""Worlds with 8-bit layers stream: rounded when they are loaded, or saved so."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from worldline.models.registry import load_model, save_model
from worldline.nn.quant import QuantisationError, quantise
from worldline.schema import Controls
from worldline.stream.engine import Engine


def walk(engine: Engine) -> np.ndarray:
    session, turn = engine.session("hall", seed=5), Controls(np.tile((0, 0, 1), (4, 1)), np.tile((2, 0, 0), (4, 1)))
    return np.concatenate([session.step(turn) for _ in range(6)])


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_world_rounded_at_load_or_saved_so_is_the_same_world(scheme, dtype, world_dir, tmp_path):
    plain = Engine.load(world_dir, dtype=dtype, threads=1, warm=False)
    rounded = Engine.load(world_dir, dtype=dtype, threads=1, warm=False, quantise=scheme)
    assert (plain.spec.quantised, rounded.spec.quantised) == ("none", scheme)
    difference = np.abs(walk(plain).astype(int) - walk(rounded)).mean()
    assert 0 < difference < 12

    shutil.copytree(world_dir.parent, tmp_path / "small")
    model = load_model(world_dir)
    quantise(model, scheme)
    save_model(model, tmp_path / "small" / "world")
    saved = Engine.load(tmp_path / "small" / "world", dtype=dtype, threads=1, warm=False)
    assert saved.spec.quantised == scheme
    assert np.array_equal(walk(saved), walk(rounded))
    with pytest.raises(QuantisationError, match="already"):
        Engine.load(tmp_path / "small" / "world", quantise="int8")
