"""Draws shared by methods: noise levels from the training table, and the weights that go with them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from worldline.functional.flow import gaussian_time_weight, training_sigmas
from worldline.functional.masks import Visibility


def table_levels(index: Tensor, shift: float) -> Tensor:
    """Noise levels of table indices (any shape), fp32."""
    return training_sigmas(1000, shift)[index]


def level_weights(index: Tensor, shift: float, weighting: str) -> Tensor:
    """Training weights of table indices: `gaussian` (Wan's) or `uniform`."""
    return torch.ones(index.shape) if weighting == "uniform" else gaussian_time_weight(1000, shift)[index]


Levels = Literal["uniform", "logit_normal"]


def drawn_index(shape: tuple[int, ...], levels: Levels, rng: torch.Generator) -> Tensor:
    """Random table indices: `uniform`, or `logit_normal`, 1000 sigmoid(N(0, 1)), most often in the middle (Esser et al. 2024;
    HunyuanVideo trains so)."""
    if levels == "uniform":
        return torch.randint(1000, shape, generator=rng)
    return (1000 * torch.randn(shape, generator=rng).sigmoid()).long().clamp(max=999)


def per_chunk_index(
    batch: int, frames: int, visibility: Visibility, rng: torch.Generator, levels: Levels = "uniform"
) -> Tensor:
    """Independent table index a chunk, shared by its frames: [B, T]."""
    chunk = visibility.chunk_index(frames)
    return drawn_index((batch, int(chunk.max()) + 1), levels, rng)[:, chunk]


def frame_weights(frames: int, given: int) -> Tensor:
    """[T]: 0 for given frames, and the rest scaled so that the mean over frames is the mean over generated frames."""
    weight = torch.ones(frames)
    weight[:given] = 0
    return weight * frames / max(frames - given, 1)
