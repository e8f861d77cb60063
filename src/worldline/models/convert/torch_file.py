"""Files of torch.save, read without running anything that they contain: `weights_only`, mapped where they can be."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from worldline.models.convert.errors import CorruptFileError, NotACheckpointError, UnsafePickleError
from worldline.models.convert.tensors import NAMES, TensorInfo

# Configs that trainers save beside the weights. They are read as empty shells: no code of these modules is run.
SHELLED_PACKAGES = ("omegaconf.", "easydict.")
SHELLED = frozenset(
    {f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "object")}
    | {"argparse.Namespace", "typing.Any", "pathlib.PosixPath", "pathlib.Path"}
)


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
            found = list(_tensors(value, str(key))) if not isinstance(value, Mapping) else list(_tensors(value, ""))
            group = str(key) if isinstance(value, Mapping) else ""
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


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor below a value, with its dotted path."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _tensors(inner, f"{path}.{i}" if path else str(i))


def _load(path: Path, zipped: bool) -> Any:
    try:
        shells = _shells(path) if zipped else []
        with safe_globals(shells):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower() or "class" in str(error).lower():
            raise _unsafe(path, _named(str(error))) from error
        raise CorruptFileError(f"{path.name} is a broken pickle ({_first_line(error)}); fetch it again") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        if isinstance(error, UnsafePickleError):
            raise
        raise CorruptFileError(
            f"{path.name} is no whole torch file ({_first_line(error)}); fetch it again or check what it is"
        ) from error


def _shells(path: Path) -> list[Any]:
    """A shell class for every config class that the pickle names. Raises UnsafePickleError for any other name."""
    names = get_unsafe_globals_in_checkpoint(str(path))
    unsafe = [n for n in names if n not in SHELLED and not n.startswith(SHELLED_PACKAGES)]
    if unsafe:
        raise _unsafe(path, ", ".join(sorted(unsafe)[:3]))
    return [(_shell_class(name), name) for name in names]


def _shell_class(name: str) -> type:
    """A class that swallows whatever a pickle builds it with and keeps nothing."""

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def swallow(self: Any, *args: Any) -> None:
        return None

    body = {"__new__": new, "__init__": swallow, "__setstate__": swallow, "__setitem__": swallow, "append": swallow}
    return type(name.rpartition(".")[2], (), body)


def _unsafe(path: Path, names: str) -> UnsafePickleError:
    return UnsafePickleError(
        f"{path.name} wants to call {names} while it is read; nothing was run. Expected tensors only: use a safetensors "
        "version of it, or, if you trust its origin, save its state_dict() anew"
    )


def _named(message: str) -> str:
    """The name that torch complains of."""
    for word in message.replace("`", " ").split():
        if "." in word.strip(".") and not word.startswith(("http", "torch.serialization", "torch.load")):
            return word.strip(".,")
    return "code of its own"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
