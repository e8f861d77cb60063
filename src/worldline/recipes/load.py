"""Recipe files: YAML, one parent by `extends`, overrides by dotted keys, the library that ships with the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from worldline.recipes.builder import Place, RecipeError, build, did_you_mean, to_data
from worldline.recipes.schema import Recipe

LIBRARY = Path(__file__).parent / "library"


def library() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(LIBRARY.glob("*.yaml"))}


def find(name: str | Path) -> Path:
    """A recipe by path or by library name. Raises RecipeError."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise RecipeError(f"no recipe file {path}; check the path, or use one of: {', '.join(library())}")
        return path
    known = library()
    if str(name) not in known:
        raise RecipeError(f"no recipe '{name}'; {did_you_mean(str(name), known)} (or give a path to a .yaml file)")
    return known[str(name)]


def read(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The raw data of a recipe file, merged over its parents."""
    path = path.resolve()
    if path in _seen:
        raise RecipeError(f"{path.name}: extends: a circle ({' -> '.join(p.name for p in (*_seen, path))})")
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{path.name}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path.name}: expected a mapping at the top level, found {type(data).__name__}")
    parent = data.pop("extends", None)
    if parent is None:
        return data
    beside = path.parent / str(parent)
    if beside.suffix not in (".yaml", ".yml"):
        beside = beside.with_suffix(".yaml")
    return merge(read(beside if beside.is_file() else find(parent), (*_seen, path)), data)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, anything else is replaced. Key order: the parent's, then the new keys."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def override(data: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """`data` with one `a.b=value` applied; the value is read as YAML."""
    key, sign, text = assignment.partition("=")
    if not sign or not key.strip(". "):
        raise RecipeError(f"--set {assignment}: expected key=value, such as stages.dmd.train.steps=100")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {assignment}: the value is not valid YAML: {error}") from error
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return merge(data, value)


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A checked recipe. Raises RecipeError naming the file, the dotted key and the nearest valid key."""
    path = find(name)
    data = read(path)
    for assignment in overrides:
        data = override(data, assignment)
    if isinstance(stages := data.get("stages"), Mapping):  # `stages: {dmd: null}` drops a parent's stage
        data["stages"] = {k: v for k, v in stages.items() if v is not None}
    return build(Recipe, data, Place(path.name))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe: every option spelled out, loadable again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_data(recipe), sort_keys=False, allow_unicode=True))


def recipe_hash(recipe: Recipe) -> str:
    """sha256 of the resolved recipe as canonical JSON: formatting and key order do not matter."""
    return hashlib.sha256(json.dumps(to_data(recipe), sort_keys=True).encode()).hexdigest()
