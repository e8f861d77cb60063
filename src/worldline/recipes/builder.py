"""Strict data -> typed frozen dataclasses, and back.

A recipe is plain data; every section has a dataclass. Unknown keys and wrong types fail before anything heavy runs,
naming the file, the dotted key and the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union

from worldline.schema import WorldlineError


class RecipeError(WorldlineError):
    """A recipe that does not say something we understand: names the file, the dotted key, and the mend."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """`did you mean 'lr'? valid: batch_size, lr` of an unknown word."""
    names = sorted(valid)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}valid: {', '.join(names)}"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in which file a value stands."""

    file: str
    key: str = ""

    def __truediv__(self, name: str) -> Place:
        return Place(self.file, f"{self.key}.{name}" if self.key else name)

    def error(self, message: str) -> RecipeError:
        """The error of this place."""
        return RecipeError(f"{self.file}: {self.key + ': ' if self.key else ''}{message}")


def build(cls: type, data: Any, place: Place) -> Any:
    """An instance of dataclass `cls` from a mapping.

    A class may choose the type of a field by its neighbours: `variant_types(data) -> {field: type}` (how a stage's
    `method` decides what its `options` are). Raises RecipeError.
    """
    if not isinstance(data, Mapping):
        raise place.error(
            f"{data!r} is not a mapping; expected the keys {', '.join(f.name for f in dataclasses.fields(cls))}"
        )
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key not in fields:
            raise (place / str(key)).error(f"unknown key; {did_you_mean(str(key), fields)}")
    chooser: Callable[[Mapping[str, Any], Place], dict[str, type]] | None = getattr(cls, "variant_types", None)
    if chooser is not None:
        hints.update(chooser(data, place))
    unset = dataclasses.MISSING
    required = [n for n, f in fields.items() if f.default is unset and f.default_factory is unset]
    missing = [name for name in required if name not in data]
    if missing:
        raise (place / missing[0]).error("missing; this key has no default")
    values = {name: convert(hints[name], value, place / name) for name, value in data.items()}
    if chooser is not None:
        for name in set(chooser(data, place)) - set(values):
            values[name] = build(hints[name], {}, place / name)
    try:
        return cls(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise place.error(str(error)) from error


def convert(kind: Any, value: Any, place: Place) -> Any:
    """`value` as type `kind`; YAML's own types plus tuples, literals, unions, dataclasses, and "1e-4" as a float."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, place)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            hint = did_you_mean(str(value), [str(c) for c in choices])
            raise place.error(f"{value!r} is not a choice; {hint}")
        return value
    if origin in (Union, types.UnionType):
        return _union(typing.get_args(kind), value, place)
    if origin in (tuple, list):
        return _sequence(kind, value, place)
    if origin in (dict, Mapping) or kind is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise place.error(f"{value!r} is not a mapping")
        _, item = typing.get_args(kind) or (str, Any)
        return {str(k): convert(item, v, place / str(k)) for k, v in value.items()}
    return _scalar(kind, value, place)


def _scalar(kind: Any, value: Any, place: Place) -> Any:
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 (no dot) as a string
        except ValueError:
            pass
    elif (kind is int and isinstance(value, bool)) or not isinstance(kind, type):
        pass
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(value, kind):
        return value
    elif kind.__module__ == "pathlib" and isinstance(value, str):
        return kind(value)
    name = getattr(kind, "__name__", str(kind))
    raise place.error(f"{value!r} is {_article(type(value).__name__)}; expected {_article(name)}")


def _article(name: str) -> str:
    return "null" if name == "NoneType" else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _union(kinds: tuple[Any, ...], value: Any, place: Place) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    if isinstance(value, Mapping):  # what is wrong with a mapping, its own kind says best
        kinds = tuple(sorted(kinds, key=lambda kind: not dataclasses.is_dataclass(kind)))
    for kind in (k for k in kinds if k is not type(None)):
        try:
            return convert(kind, value, place)
        except RecipeError as error:
            errors.append(error)
    raise errors[0]


def _sequence(kind: Any, value: Any, place: Place) -> Any:
    if not isinstance(value, (list, tuple)):
        raise place.error(f"{value!r} is not a list")
    args, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise place.error(f"{len(value)} values; expected {len(args)}")
        items = args
    else:
        items = (args[0] if args else Any,) * len(value)
    return origin(convert(k, v, place / str(i)) for i, (k, v) in enumerate(zip(items, value, strict=True)))


def to_data(value: Any) -> Any:
    """Plain data (dicts, lists, scalars) of a built value: what is saved and hashed."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_data(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
