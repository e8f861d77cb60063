"""Tiny real batches for every method."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import random_cameras

from worldline.schema import LatentBatch, TextEmbedding

EMPTY = TextEmbedding(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")


class TinyClips:
    """Random clips of 5 latents by index, batches by counter."""

    def __len__(self) -> int:
        return 32

    def select(self, index: list[int]) -> LatentBatch:
        g = torch.Generator().manual_seed(index[0])
        B = len(index)
        text = TextEmbedding(torch.randn(B, 6, 8, generator=g), torch.ones(B, 6, dtype=torch.bool), "random")
        return LatentBatch(torch.randn(B, 5, 4, 4, 6, generator=g), text, random_cameras(B, 5, index[0]))

    def batch(self, seed: int, step: int, batch_size: int, device: str = "cpu") -> LatentBatch:
        return self.select([(seed + step * batch_size + i) % 1000 for i in range(batch_size)])


@pytest.fixture
def clips() -> TinyClips:
    return TinyClips()


@pytest.fixture
def empty() -> TextEmbedding:
    """The unconditional prompt."""
    return EMPTY
