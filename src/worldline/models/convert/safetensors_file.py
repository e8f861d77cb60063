"""The safetensors container, read by its header and written tensor by tensor: no more than one tensor in memory.

Layout: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.models.convert.errors import CorruptFileError, NotACheckpointError
from worldline.models.convert.tensors import DTYPES, TensorInfo, as_bytes

MAX_HEADER = 100_000_000  # the limit of the format itself
GROUP_WORDS = frozenset({"generator", "generator_ema", "critic", "ema", "model_ema", "fake_score", "real_score"})


class SafetensorsFile:
    """One file. Opening it reads and checks the header only."""

    container = "safetensors"
    extras: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        header, self._data_start = _read_header(path)
        said = header.pop("__metadata__", {})
        self.metadata: Mapping[str, str] = said if isinstance(said, dict) else {}
        self._offsets: dict[tuple[str, str], int] = {}
        self.groups: dict[str, dict[str, TensorInfo]] = {}
        end = 0
        for key, entry in sorted(header.items(), key=lambda item: _begin(path, *item)):
            info, begin, stop = _entry(path, key, entry)
            if begin != end:
                raise CorruptFileError(
                    f"{path.name}: tensor {key} begins at byte {begin}, expected {end}; fetch it again"
                )
            end = stop
            group, name = split_group(key)
            self.groups.setdefault(group, {})[name] = info
            self._offsets[group, name] = begin
        have = path.stat().st_size - self._data_start
        if have != end:
            what = "is cut short" if have < end else "has bytes left over"
            raise CorruptFileError(
                f"{path.name} {what}: {have:,} bytes of data, its header says {end:,}; fetch it again"
            )

    def read(self, group: str, name: str) -> Tensor:
        """One tensor, read from disk into its own memory (a mapping would keep the whole file resident)."""
        info = self.groups[group][name]
        buffer = bytearray(info.nbytes)
        with self.path.open("rb") as file:
            file.seek(self._data_start + self._offsets[group, name])
            if file.readinto(buffer) != info.nbytes:
                raise CorruptFileError(f"{self.path.name}: tensor {name} could not be read whole; fetch the file again")
        dtype = DTYPES[info.dtype]
        return (torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)).reshape(info.shape)


def looks_like_safetensors(first: bytes) -> bool:
    """Whether a file's first bytes are a believable header length and the beginning of a JSON table."""
    return first[8:9] == b"{" and struct.unpack("<Q", first[:8])[0] <= MAX_HEADER


def split_group(key: str) -> tuple[str, str]:
    """`generator_ema.blocks.0...` -> (`generator_ema`, `blocks.0...`); a key without such a word is in group ``."""
    head, dot, rest = key.partition(".")
    return (head, rest) if dot and head in GROUP_WORDS else ("", key)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise NotACheckpointError(f"{path.name} is no safetensors file: it names a header of {length:,} bytes")
        if 8 + length > size:
            raise CorruptFileError(f"{path.name} is cut short: {size:,} bytes, its header alone is {8 + length:,}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path.name}: its safetensors header is no JSON ({error}); fetch it again") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{path.name}: its safetensors header is no table; fetch it again")
    return header, 8 + length


def _begin(path: Path, key: str, entry: Any) -> tuple[int, int]:
    _, begin, stop = _entry(path, key, entry)
    return begin, stop


def _entry(path: Path, key: str, entry: Any) -> tuple[TensorInfo, int, int]:
    try:
        shape = tuple(int(n) for n in entry["shape"])
        begin, stop = (int(n) for n in entry["data_offsets"])
        info = TensorInfo(str(entry["dtype"]), shape)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path.name}: the header entry of {key} is broken ({error}); fetch it again") from error
    if any(n < 0 for n in shape) or begin < 0 or (info.dtype in DTYPES and stop - begin != info.nbytes):
        raise CorruptFileError(
            f"{path.name}: tensor {key} {info.dtype} {list(shape)} holds {stop - begin:,} bytes, expected {info.nbytes:,}"
        )
    return info, begin, stop


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `tensors`, asking `read` for each when its turn comes; `progress` gets the bytes just written.

    Wide dtypes come first, so that every tensor is aligned to its element; otherwise the given order is kept.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        info = tensors[name]
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name in order:
            file.write(as_bytes(read(name)))
            progress(tensors[name].nbytes)
        file.flush()
        os.fsync(file.fileno())
