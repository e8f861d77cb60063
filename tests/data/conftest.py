"""One tiny dataset for all data tests: built once, by the real builder, in the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldline.data.build import DataConfig, build_dataset
from worldline.data.dataset import ClipDataset, open_dataset

pytest.importorskip("vizdoom")


@pytest.fixture(scope="session")
def config() -> DataConfig:
    return DataConfig(seed=7, maps=2, clips_per_map=4, heldout_maps=1, frames=29)


@pytest.fixture(scope="session")
def built(config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(config, tmp_path_factory.mktemp("rooms"), workers=1)


@pytest.fixture(scope="session")
def dataset(built: Path) -> ClipDataset:
    return open_dataset(built)
