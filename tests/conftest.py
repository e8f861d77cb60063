"""Shared tiny models: the real classes at small width, with every weight re-randomised (zero heads hide bugs)."""

from __future__ import annotations

import pytest
import torch

from worldline.functional.camera import cameras_of
from worldline.models.wan import WanConfig, WanModel
from worldline.schema import Cameras, TextEmbedding

torch.set_num_threads(1)


def randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.15) -> torch.nn.Module:
    """Draw every parameter anew, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator) * std
            p.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model


@pytest.fixture
def tiny_wan():
    """Factory of a re-randomised two-layer WanModel."""

    def make(camera: str = "none", **changes) -> WanModel:
        sizes = dict(
            dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=6, in_channels=4, out_channels=4
        )
        cfg = WanConfig(**{**sizes, "freq_dim": 16, "camera": camera, **changes})
        return randomise(WanModel(cfg)).eval()

    return make


@pytest.fixture
def tiny_text():
    """Factory of random prompts [B, 6, 8] with some padding."""

    def make(batch: int = 1, seed: int = 0) -> TextEmbedding:
        tokens = torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(seed))
        return TextEmbedding(tokens, torch.tensor([True] * 4 + [False] * 2).expand(batch, -1), "random")

    return make


def random_cameras(batch: int, frames: int, seed: int = 0) -> Cameras:
    """Cameras on a random walk with yaw, pitch and translation; identity first."""
    g = torch.Generator().manual_seed(seed)
    skew = torch.randn(batch, frames, 3, generator=g, dtype=torch.float64) * 0.2
    move = torch.randn(batch, frames, 3, generator=g, dtype=torch.float64) * 0.2
    step = torch.zeros(batch, frames, 4, 4, dtype=torch.float64)
    step[..., 0, 1], step[..., 0, 2], step[..., 1, 2] = -skew[..., 2], skew[..., 1], -skew[..., 0]
    step = torch.linalg.matrix_exp(step - step.transpose(-1, -2))
    step[..., :3, 3] = move
    poses = [torch.eye(4, dtype=torch.float64).expand(batch, 4, 4)]
    for t in range(1, frames):
        poses.append(poses[-1] @ step[:, t])
    K = torch.tensor([0.5, 0.9, 0.5, 0.5]).expand(batch, frames, 4)
    return cameras_of(torch.linalg.inv(torch.stack(poses, dim=1)).float(), K)


@pytest.fixture
def cameras():
    """Factory of random camera walks."""
    return random_cameras
