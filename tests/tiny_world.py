"""Write a random world of the real classes, small enough for milliseconds a chunk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import randomise
from worldline.functional.masks import Visibility
from worldline.models.codec import Codec
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.models.registry import save_model
from worldline.models.wan import WanConfig, WanModel
from worldline.models.wan_vae import WanVAE, WanVAEConfig
from worldline.stream.world import WorldConfig

HEIGHT, WIDTH = 32, 48


def tiny_nano_vae() -> NanoVAE:
    """The nano codec at a size for tests."""
    return NanoVAE(NanoVAEConfig(latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), blocks=1))


def tiny_wan_vae() -> WanVAE:
    """Wan2.1's codec at a size for tests."""
    return WanVAE(WanVAEConfig((0.0,) * 4, (1.0,) * 4, encoder_width=4, decoder_width=4, blocks=1))


def write_tiny_world(root: Path, chunk: int = 1, window: int = 4, codec: Codec | None = None, **changes) -> Path:
    """codec/, starts/ and world/ under `root`; returns the world's directory."""
    sizes = dict(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=6, in_channels=4, out_channels=4)
    model = randomise(WanModel(WanConfig(**sizes, freq_dim=16, camera="fused")), std=0.25)
    save_model(model, root / "world", {"made": "tests"})
    save_model(randomise(codec or tiny_nano_vae(), seed=1, std=0.12), root / "codec")
    config = WorldConfig(
        visibility=Visibility(chunk=chunk, window=window, prefix=1),
        sigmas=(1.0, 0.9375),
        height=HEIGHT,
        width=WIDTH,
        K=(0.44, 0.67, 0.5, 0.5),
        move_scale=0.05,
        walk_units_per_frame=4.0,
        **changes,
    )
    config.write(root / "world")
    starts = root / "starts"
    starts.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name in ("hall", "cellar"):
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(starts / f"{name}.png")
    rows = [{"file": f"{n}.png", "caption": f"a {n}", "map_seed": i} for i, n in enumerate(("hall", "cellar"))]
    (starts / "index.json").write_text(json.dumps(rows))
    return root / "world"
