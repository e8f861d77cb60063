"""Draws shared by methods: noise levels from the training table, and the weights that go with them."""

from __future__ import annotations

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


def per_chunk_index(batch: int, frames: int, visibility: Visibility, rng: torch.Generator) -> Tensor:
    """Independent table index a chunk, shared by its frames: [B, T]."""
    chunk = visibility.chunk_index(frames)
    draws = torch.randint(1000, (batch, int(chunk.max()) + 1), generator=rng)
    return draws[:, chunk]


def frame_weights(frames: int, given: int) -> Tensor:
    """[T]: 0 for given frames, and the rest scaled so that the mean over frames is the mean over generated frames."""
    weight = torch.ones(frames)
    weight[:given] = 0
    return weight * frames / max(frames - given, 1)
