"""A tiny world on disk, made of the real classes."""

from __future__ import annotations

import pytest
from tests.tiny_world import write_tiny_world

from worldline.stream.engine import Engine


@pytest.fixture(scope="session")
def world_dir(tmp_path_factory):
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(world_dir):
    """A fresh engine a test, so that a test may spoil the weights."""
    return Engine.load(world_dir, dtype="float32", threads=1, warm=False)
