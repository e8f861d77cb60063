"""A kind of folder that weights are written to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worldline.models.convert.tensors import TensorInfo


def one(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor as it is."""
    (only,) = parts
    return only


@dataclass(frozen=True)
class Target:
    """Its names (None for what it has no place for), its weights file, and how it writes its config. Where several of our
    tensors have one name there, `join` makes them one: rows under rows, in our order."""

    theirs: Callable[[str], str | None]
    weights: str
    config: Callable[[Any, Collection[str]], dict[str, Any]]
    join: Callable[[str, Sequence[torch.Tensor]], torch.Tensor] = one

    @staticmethod
    def stacked(infos: Sequence[TensorInfo]) -> TensorInfo:
        """Header of tensors written as one."""
        first = infos[0]
        return TensorInfo(first.dtype, (sum(info.shape[0] for info in infos), *first.shape[1:])) if infos[1:] else first
