"""From a path to an opened checkpoint: files, shards with an index, model folders, and clear words for what is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from worldline.models.convert.errors import CorruptFileError, NotACheckpointError
from worldline.models.convert.safetensors_file import SafetensorsFile, looks_like_safetensors
from worldline.models.convert.tensors import Source, TensorInfo
from worldline.models.convert.torch_file import TorchFile

WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.pt")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")


class Shards:
    """Several files with an index {weight_map: {key: file}} seen as one."""

    def __init__(self, index: Path) -> None:
        where = _read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise CorruptFileError(f"{index.name} has no weight_map; expected {{weight_map: {{key: file}}}}")
        names = sorted({str(name) for name in where.values()})
        if strange := [n for n in names if Path(n).name != n]:
            raise CorruptFileError(f"{index.name} points outside its folder ({strange[0]}); expected plain file names")
        if lost := [n for n in names if not (index.parent / n).is_file()]:
            raise NotACheckpointError(
                f"{index.name} names {len(lost)} shards that are not there ({lost[0]}); fetch them"
            )
        files = {name: open_file(index.parent / name) for name in names}
        self.container = f"{next(iter(files.values())).container}, {len(files)} shards"
        self.metadata: Mapping[str, str] = {}
        self.extras: tuple[str, ...] = ()
        self.groups: dict[str, dict[str, TensorInfo]] = {}
        self._home: dict[tuple[str, str], Source] = {}
        for file_name, file in files.items():
            for group, tensors in file.groups.items():
                for name, info in tensors.items():
                    if (group, name) in self._home:
                        raise CorruptFileError(f"{index.name}: {name} is in two shards, {file_name} is the second")
                    self.groups.setdefault(group, {})[name] = info
                    self._home[group, name] = file
        if lost := [key for key in where if not self._has(key)]:
            raise CorruptFileError(f"{index.name} names {len(lost)} tensors that no shard holds, first {lost[0]}")

    def _has(self, key: str) -> bool:
        head, _, rest = key.partition(".")
        return ("", key) in self._home or (head, rest) in self._home

    def read(self, group: str, name: str) -> Tensor:
        """One tensor of whichever shard holds it."""
        return self._home[group, name].read(group, name)


def locate(path: Path) -> Path:
    """The weights or index file that a path means: a folder's own, a pipeline's transformer, or the file itself."""
    if not path.exists():
        raise NotACheckpointError(f"{path} does not exist; expected a weights file, a shard index or a model folder")
    if path.is_dir():
        return _weights_of(path)
    if match := SHARD.fullmatch(path.name):
        index = path.with_name(f"{match[1]}{match[4]}.index.json")
        if not index.is_file():
            raise NotACheckpointError(
                f"{path.name} is shard {int(match[2])} of {int(match[3])} and {index.name} is not beside it; fetch the "
                "index and all shards"
            )
        return index
    return path


def _weights_of(folder: Path) -> Path:
    if (folder / ".metadata").is_file():
        raise NotACheckpointError(
            f"{folder} is a training state of torch.distributed.checkpoint; export it with the project that wrote it "
            "(minWM: tools/export_checkpoint.py) and convert the exported file"
        )
    for name in WEIGHTS:
        for found in (folder / f"{name}.index.json", folder / name):
            if found.is_file():
                return found
    if (folder / "transformer").is_dir():
        return _weights_of(folder / "transformer")
    raise NotACheckpointError(f"{folder} holds no weights; expected one of {', '.join(WEIGHTS)} or an index of shards")


def open_source(path: Path) -> Source:
    """Open a located file."""
    try:
        return Shards(path) if path.name.endswith(".index.json") else open_file(path)
    except OSError as error:
        raise NotACheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise CorruptFileError(f"{path.name} is nested without end; expected a table of tensors") from error


def open_file(path: Path) -> Source:
    """One weights file, told by its first bytes."""
    with path.open("rb") as file:
        first = file.read(512)
    if looks_like_safetensors(first):  # asked first, since the length that it begins with can be any bytes
        return SafetensorsFile(path)
    if first.startswith(b"version https://git-lfs"):
        raise NotACheckpointError(f"{path.name} is a Git LFS pointer, not the weights; run `git lfs pull`")
    if first.lstrip()[:1] == b"<":
        raise NotACheckpointError(f"{path.name} is a web page, not weights: the download failed or needs a login")
    if first[:4] == b"GGUF":
        raise NotACheckpointError(f"{path.name} is a GGUF file; expected the unquantised safetensors or torch weights")
    if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] <= b"\x05"):
        if path.suffix == ".safetensors":  # torch.load goes by the name
            raise NotACheckpointError(f"{path.name} is a file of torch.save under another name; rename it to .pt")
        return TorchFile(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)  # says what is wrong with it
    raise NotACheckpointError(f"{path.name} begins with {first[:8]!r}: neither safetensors nor a file of torch.save")


def described(weights: Path) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """What stands beside the weights: config.json and card.json (empty where absent), and the licence stated there."""
    folder = weights.parent
    config, card = (
        _read_json(folder / name) if (folder / name).is_file() else {} for name in ("config.json", "card.json")
    )
    licence = card.get("licence")
    for readme in (folder / "README.md", folder.parent / "README.md"):
        if licence is None and readme.is_file():
            front = readme.read_text(errors="replace").split("---")
            found = re.search(r"^license(?:_name)?:\s*(\S.*)$", front[1], re.MULTILINE) if len(front) > 2 else None
            licence = found[1].strip() if found else None
    return config, card, None if licence is None else str(licence)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path.name} is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path.name} is no JSON table; fetch it again")
    return content
