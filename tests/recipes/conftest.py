"""A dataset on disk made without a game engine, and the smallest recipe that has every stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

FRAMES, SIZE = 13, 32

SMALLEST = """
name: smallest
codec:
  path: null
  model: {encoder_widths: [8, 8, 8], decoder_widths: [8, 8, 8], blocks: 1, latent_channels: 16}
  frames: 5
  train: {steps: 2, batch_size: 2}
base:
  path: null
  train: {steps: 2, batch_size: 2}
model: {changes: {dim: 32, ffn_dim: 48, num_heads: 2, num_layers: 1}}
rollout: {window: 4, steps: 2}
stages:
  camera: {method: finetune, train: {steps: 4, batch_size: 2, save_every: 1}}
  ar: {method: teacher_forcing, init: camera, train: {steps: 2, batch_size: 2}}
  ode:
    method: ode
    init: ar
    teacher: ar
    options: {steps: 2, euler_steps: 2, clips: 2, guidance: 1.5}
    train: {steps: 2, batch_size: 2}
  cd: {method: consistency, init: ode, teacher: ar, options: {guidance: 1.5}, train: {steps: 2, batch_size: 2}}
  dmd: {method: dmd, init: cd, real: camera, fake: camera, train: {steps: 2, batch_size: 2}}
evaluate: {stages: false}
world: {starts: 2}
"""


def write_dataset(root: Path, train: int = 3, heldout: int = 2) -> None:
    """Clips of smooth random colours along straight walks, in the format of `worldline data build`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    rows = []
    (root / "units").mkdir(parents=True)
    for split, count in (("train", train), ("heldout", heldout)):
        c2w = np.tile(np.eye(4), (count, FRAMES, 1, 1))
        c2w[:, :, 2, 3] = 4.0 * np.arange(FRAMES)
        arrays = {
            "frames": np.tile(rng.integers(0, 255, (count, 1, SIZE, SIZE, 3), dtype=np.uint8), (1, FRAMES, 1, 1, 1)),
            "c2w": c2w,
            "K": np.tile([0.44, 0.66, 0.5, 0.5], (count, FRAMES, 1)),
            "move": np.zeros((count, FRAMES, 3), dtype=np.float32),
            "look": np.zeros((count, FRAMES, 3), dtype=np.float32),
        }
        save_file(arrays, root / "units" / f"{split}.safetensors")
        for i in range(count):
            row = {"id": f"{split}-{i}", "unit": split, "row": i, "split": split, "map_seed": i, "caption": f"room {i}"}
            rows.append({**row, "spawn_x": 0, "spawn_y": 0, "spawn_angle": 0.0, "keys": [""] * (FRAMES - 1)})
    pq.write_table(pa.Table.from_pylist(rows), root / "manifest.parquet")
    info = {"fps": 16, "walk_units_per_frame": 4.0, "move_scale": 0.005, "clips": len(rows), "fingerprint": "test"}
    info["config"] = {"frames": FRAMES}
    (root / "dataset.json").write_text(json.dumps({**info, "source": "a test", "licence": "Apache-2.0"}))


@pytest.fixture
def smallest(tmp_path):
    """Path of a recipe file with every conversion stage, on a dataset without an engine."""
    write_dataset(tmp_path / "clips")
    data = yaml.safe_load(SMALLEST)
    data["data"] = {"path": str(tmp_path / "clips")}
    path = tmp_path / "smallest.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
