"""What a checkpoint is, as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from worldline.models.convert.errors import some
from worldline.models.hunyuan15 import HunyuanConfig
from worldline.models.wan import WanConfig


@dataclass(frozen=True)
class WeightSet:
    """One set of weights of a file."""

    name: str
    tensors: int
    nbytes: int
    what: str
    """`weights`, `EMA weights`, `critic`, `LoRA`, or `not weights of this family`."""


@dataclass(frozen=True)
class CheckpointReport:
    """What `inspect` found out. Keys in `unknown` stand as in the file; all other keys are in our naming."""

    file: str
    container: str
    family: str
    layout: str
    """The project whose file this is, as far as names can tell."""
    variant: str | None
    """A published model of these sizes."""
    config: WanConfig | HunyuanConfig
    heads_known: bool
    """The weights do not tell the number of heads; False where nothing else told it either (config then says 1)."""
    sets: tuple[WeightSet, ...]
    chosen: str
    """The set that is converted."""
    tensors: int
    parameters: int
    nbytes: int
    dtypes: dict[str, int]
    """Tensors by dtype."""
    roles: dict[str, int]
    """Tensors by what they are for: base, camera, action, motion, image."""
    wrappers: tuple[str, ...]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    licence: str
    extras: tuple[str, ...]
    notes: tuple[str, ...]
    """What one should know who uses these weights."""

    @property
    def faults(self) -> str:
        """What stands against a conversion, in one line; empty if nothing does."""
        parts = [
            f"{len(keys)} {word} ({some(keys)})"
            for keys, word in (
                (self.unknown, "unexplained tensors"),
                (self.missing, "missing tensors"),
                (self.misshapen, "tensors of the wrong shape"),
            )
            if keys
        ]
        return ", ".join(parts)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)
