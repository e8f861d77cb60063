"""Files of torch.save, read without running anything that they contain: `weights_only`, mapped where they can be."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from worldline.models.convert.errors import CorruptFileError, NotACheckpointError, UnsafePickleError, some
from worldline.models.convert.tensors import NAMES, TensorInfo

# Configs that trainers save beside the weights. They are read as empty shells: no code of these modules is run.
SHELLED_PACKAGES = ("omegaconf.", "easydict.")
SHELLED = frozenset(
    {f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "object")}
    | {"argparse.Namespace", "collections.defaultdict", "typing.Any", "pathlib.PosixPath", "pathlib.Path"}
)

HARMLESS = ("torch.", "collections.", "_codecs.")  # what plain tensors themselves need


class TorchFile:
    """One file. Its tensors stay on disk until they are read, if torch wrote it as a zip archive (as it does since 1.6)."""

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        self.path, self.container = path, "torch" if zipped else "torch, before version 1.6"
        content = _load(path, zipped)
        if not isinstance(content, Mapping):
            raise NotACheckpointError(
                f"{path.name} holds one {type(content).__name__}; expected a table of tensors, as state_dict() gives it"
            )
        self._tensors: dict[tuple[str, str], Tensor] = {}
        extras = []
        for key, value in content.items():
            group, stem = (str(key), "") if isinstance(value, Mapping) else ("", str(key))
            found = list(_tensors(value, stem, set()))
            for name, tensor in found:
                self._tensors[group, name] = tensor
            if not found:
                extras.append(str(key))
        self.extras = tuple(extras)
        self.groups: dict[str, dict[str, TensorInfo]] = {}
        for (group, name), tensor in self._tensors.items():
            dtype = NAMES.get(tensor.dtype, str(tensor.dtype))
            self.groups.setdefault(group, {})[name] = TensorInfo(dtype, tuple(tensor.shape))

    def read(self, group: str, name: str) -> Tensor:
        """One tensor; a view of something larger is copied out of it."""
        return self._tensors[group, name].detach().contiguous()


def _tensors(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor below a value, with its dotted path. Each table and list is entered once, however often it is met."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(inner, f"{path}.{key}" if path else str(key), seen)


def _load(path: Path, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings(), safe_globals(_shells(path) if zipped else []):
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if names := [n for n in named_globals(path) if not (n.startswith(HARMLESS) or _shelled(n))]:
            raise _unsafe(path, names) from error
        raise CorruptFileError(
            f"{path.name} cannot be read as plain tensors ({_gist(error)}); fetch it again"
        ) from error
    except UnsafePickleError:
        raise
    except Exception as error:  # a broken file fails anywhere inside torch, with any type
        raise CorruptFileError(f"{path.name} is no whole torch file ({_gist(error)}); fetch it again") from error


def _shells(path: Path) -> list[Any]:
    """A shell class for every config class that the pickle names. Raises UnsafePickleError for any other name."""
    names = get_unsafe_globals_in_checkpoint(str(path))
    if unsafe := [n for n in names if not _shelled(n)]:
        raise _unsafe(path, unsafe)
    return [(_shell_class(name), name) for name in names]


def _shelled(name: str) -> bool:
    return name in SHELLED or name.startswith(SHELLED_PACKAGES)


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _shell_class(name: str) -> Any:
    """What stands for a config class: it swallows whatever a pickle builds it with. Tables must be torch's idea of one."""
    if name == "collections.defaultdict":
        return _empty_dict
    if name.startswith("easydict."):
        return OrderedDict

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def swallow(self: Any, *args: Any) -> None:
        return None

    return type(name.rpartition(".")[2], (), {"__new__": new, "__init__": swallow, "__setstate__": swallow})


def named_globals(path: Path) -> list[str]:
    """Every `module.name` that the pickles of a file mention, found by reading their opcodes, not by obeying them."""
    names: list[str] = []
    texts = [""]
    # What cannot be parsed ends the search: the raw tensors after the last pickle, or a broken archive.
    with contextlib.suppress(ValueError, IndexError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = b"".join(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
        else:
            data = path.read_bytes()
        stream = io.BytesIO(data)
        while stream.tell() < len(data):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    names.append(str(argument).replace(" ", ".").replace("__builtin__.", "builtins."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
    return list(dict.fromkeys(names))


def _unsafe(path: Path, names: list[str]) -> UnsafePickleError:
    return UnsafePickleError(
        f"{path.name} wants to call {some(names, 3)} while it is read; nothing was run. Expected tensors only: use a "
        "safetensors version of it, or, if you trust its origin, save its state_dict() anew"
    )


def _gist(error: BaseException) -> str:
    """The telling sentence of torch's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    boilerplate = ("Weights only load failed", "Please file an issue", "Check the documentation", "(1)", "(2)")
    return next((line for line in lines if not line.startswith(boilerplate)), type(error).__name__).split(". ")[0][:160]
