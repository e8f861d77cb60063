"""Files as other projects write them, from a small model with every weight redrawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import randomise
from torch import Tensor

from worldline.models.convert.keymaps import LAYOUTS
from worldline.models.wan import WanConfig, WanModel

SIZES = dict(dim=48, ffn_dim=40, num_heads=2, num_layers=2, text_dim=8, text_len=512)


@pytest.fixture
def small_wan():
    """Factory of a re-randomised model whose text length is Wan's own (weights do not tell it)."""

    def make(camera: str = "none", seed: int = 0, **changes) -> WanModel:
        cfg = WanConfig(**{**SIZES, "in_channels": 4, "out_channels": 4, "freq_dim": 16, "camera": camera, **changes})
        return randomise(WanModel(cfg), seed).eval()

    return make


def in_layout(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Our state dict under another project's names."""
    renamed = {LAYOUTS[layout].theirs(k): v for k, v in state.items()}
    assert None not in renamed
    return renamed


def write(path: Path, weights: dict[str, Tensor], layout: str, **more: object) -> Path:
    """A file of that project: torch.save of its set of weights, or plain safetensors."""
    renamed, group = in_layout(weights, layout), LAYOUTS[layout].group
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in renamed.items()}, path)
    else:
        torch.save({group: renamed, **more} if group else renamed, path)
    return path


def write_shards(folder: Path, state: dict[str, Tensor], layout: str, parts: int = 3) -> Path:
    """Sharded safetensors with an index."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    stem, items, where = "diffusion_pytorch_model", list(in_layout(state, layout).items()), {}
    for part in range(parts):
        name = f"{stem}-{part + 1:05d}-of-{parts:05d}.safetensors"
        shard = dict(items[part::parts])
        save_file(shard, folder / name)
        where |= dict.fromkeys(shard, name)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index
