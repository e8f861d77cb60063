"""Types of a tensor in a file: its dtype under safetensors' names, its shape, and what it weighs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 for a dtype that we cannot store."""
        return DTYPES[self.dtype].itemsize if self.dtype in DTYPES else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.count * self.itemsize


class Source(Protocol):
    """An opened checkpoint: named sets of weights whose tensors are read one by one."""

    @property
    def container(self) -> str:
        """What kind of file it is."""

    @property
    def groups(self) -> Mapping[str, Mapping[str, TensorInfo]]:
        """Sets of weights by name (`generator_ema`, ...; the empty name where the file holds just one)."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text entries of the header."""

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of entries that hold no tensors (step counters, configs)."""

    def read(self, group: str, name: str) -> Tensor:
        """One tensor, contiguous, in its own dtype."""


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    data: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return data
