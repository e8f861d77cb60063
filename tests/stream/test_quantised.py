"""Worlds with 8-bit layers stream: rounded when they are loaded, or saved so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from worldline.cli import main
from worldline.models.registry import load_model, weights_hash
from worldline.nn.quant import QuantisationError, scheme_of
from worldline.schema import Controls
from worldline.stream.engine import Engine
from worldline.stream.quantised import write_quantised
from worldline.stream.stages import heard
from worldline.stream.world import WorldConfig


def walk(engine: Engine) -> np.ndarray:
    session, turn = engine.session("hall", seed=5), Controls(np.tile((0, 0, 1), (4, 1)), np.tile((2, 0, 0), (4, 1)))
    return np.concatenate([session.step(turn) for _ in range(6)])


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_world_rounded_at_load_or_saved_so_is_the_same_world(scheme, dtype, world_dir, tmp_path):
    plain = Engine.load(world_dir, dtype=dtype, threads=1, warm=False)
    stages = []
    with heard(stages.append):
        rounded = Engine.load(world_dir, dtype=dtype, threads=1, quantise=scheme)
    assert stages == ["weights", "codec", "quantise", "warm-up"]
    assert (plain.spec.quantised, rounded.spec.quantised) == ("none", scheme)
    difference = np.abs(walk(plain).astype(int) - walk(rounded)).mean()
    assert 0 < difference < 12

    small = tmp_path / "small"
    assert main(["convert", str(world_dir), "--quantise", scheme, "--out", str(small)]) == 0
    saved = Engine.load(small, dtype=dtype, threads=1, warm=False)
    assert saved.spec.quantised == scheme
    assert np.array_equal(walk(saved), walk(rounded))
    with pytest.raises(QuantisationError, match="already"):
        Engine.load(small, quantise="int8")


def test_a_written_world_stands_alone(world_dir, tmp_path):
    small = tmp_path / "small"
    done = write_quantised(world_dir, small, "int8", skip=("blocks.0.*",))
    assert done.layers
    assert not any(name.startswith("blocks.0.") for name in done.layers)
    config = WorldConfig.read(small)
    assert replace(config, codec="../codec", starts="../starts") == WorldConfig.read(world_dir)
    moved = shutil.move(small, tmp_path / "elsewhere")
    assert list(Engine.load(moved, threads=1, warm=False).starts) == ["hall", "cellar"]
    assert json.loads((tmp_path / "elsewhere" / "card.json").read_text())["quantised"]["from"] == weights_hash(
        world_dir
    )


def test_a_model_alone_is_written_too(world_dir, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world_dir / name, tmp_path / "model")
    write_quantised(tmp_path / "model", tmp_path / "small", "fp8")
    assert scheme_of(load_model(tmp_path / "small")) == "fp8"


def test_what_cannot_be_written_leaves_nothing(world_dir, tmp_path, capsys):
    out = str(tmp_path / "out")
    for argv, said in (
        ([str(world_dir.parent / "codec"), "--quantise", "int8", "--out", out], "expected a video model"),
        ([str(world_dir), "--quantise", "int8", "--out", str(world_dir)], "exists"),
        ([str(world_dir), "--quantise", "int8", "--out", out, "--to", "wan"], "--to wan"),
        ([str(world_dir), "--quantise", "int8", "--out", out, "--dtype", "bfloat16"], "--dtype"),
        ([str(tmp_path / "none"), "--quantise", "int8", "--out", out], "no config.json"),
    ):
        assert main(["convert", *argv]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
