"""The documentation cannot rot: links lead somewhere, commands parse, the recipe loads, the program runs."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_world import write_tiny_world
from worldline.cli import parser
from worldline.data.build import DataConfig
from worldline.evaluate.suite import evaluate_player
from worldline.recipes.load import library, load_recipe
from worldline.recipes.schema import BUILT_IN

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Made from a finished run, after the text that shows them.
LATER = {"docs/media/bundled-world.png"}
NAMES = {page.relative_to(ROOT).as_posix(): page for page in PAGES}

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_PATH = re.compile(r"`((?:src/worldline|tests|docs)/[\w./-]+)`")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language; "" is a block that names none."""
    return [body for named, body in BLOCK.findall(page.read_text()) if named == language]


def links(page: Path) -> list[str]:
    """Relative targets outside of code blocks, without their anchors."""
    targets = [target.partition("#")[0] for target in LINK.findall(BLOCK.sub("", page.read_text()))]
    return [target for target in targets if target and "://" not in target]


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `worldline ...` line in blocks that hold commands."""
    lines = [line.strip() for language in ("", "bash", "sh") for b in blocks(page, language) for line in b.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if "worldline " in line]
    return [w[1:] for w in words if w and Path(w[0]).name == "worldline"]


CALLS = [
    pytest.param(call, id=f"{name}: {shlex.join(call)}") for name, page in NAMES.items() for call in commands(page)
]


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name):
    page = NAMES[name]
    missing = [t for t in links(page) if not (page.parent / t).exists()]
    later = [t for t in missing if (page.parent / t).resolve().relative_to(ROOT).as_posix() in LATER]
    assert sorted(missing) == sorted(later)


@pytest.mark.parametrize("name", NAMES)
def test_files_named_in_the_text_are_there(name):
    text = BLOCK.sub("", NAMES[name].read_text())
    assert [path for path in CODE_PATH.findall(text) if not (ROOT / path).exists()] == []


def test_there_are_commands_to_check():
    assert len(CALLS) > 15, "the pages' blocks are no longer found"


@pytest.mark.parametrize("call", CALLS)
def test_commands_parse(call, capsys):
    try:
        args = parser().parse_args(call)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    recipe = getattr(args, "recipe", None)
    assert recipe is None or recipe in library() or recipe.endswith(".yaml") or recipe.startswith("runs/"), recipe
    for stage in (getattr(args, "from_", None), getattr(args, "until", None)):
        assert stage is None or stage in stages(recipe), stage
    if overrides := getattr(args, "overrides", None):
        check_overrides(args, "hunyuan-8b-small" if "HY-WorldPlay" in str(call) else recipe, overrides)


def stages(recipe: str) -> set[str]:
    """What `--from` and `--until` take for the recipe that a command names."""
    said = load_recipe(library_name(recipe))
    taken = {part for part in ("data", "codec", "base") if getattr(said, part).path is not None}
    return {*BUILT_IN, *said.stages} - taken


def library_name(recipe: str) -> str:
    """runs/nano-demo was made by nano-demo; a reader's own recipe extends it."""
    name = recipe.removeprefix("runs/")
    return name if name in library() else "nano-demo"


def check_overrides(args: argparse.Namespace, recipe: str | None, overrides: list[str]) -> None:
    """`--set` names options that exist: of a dataset, or of a recipe."""
    if recipe is None:
        assert {o.partition("=")[0] for o in overrides} <= {f.name for f in fields(DataConfig)}
    else:
        load_recipe(library_name(recipe), overrides)


def test_the_guides_recipe_loads_and_plans(tmp_path):
    (body,) = blocks(ROOT / "docs/guide.md", "yaml")
    path = tmp_path / "my.yaml"
    path.write_text(body)
    recipe = load_recipe(path)
    assert list(recipe.stages) == ["camera", "ar", "ode", "dmd"]


def test_the_programs_run(tmp_path, monkeypatch):
    """README's, the guide's and the engine page's programs, word for word, with a tiny world where theirs would be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    world = write_tiny_world(tmp_path / "runs/nano-demo")
    monkeypatch.setattr("worldline.recipes.assets.bundled", lambda part: world)
    (readme,) = blocks(ROOT / "README.md", "python")
    (guide,) = (b for b in blocks(ROOT / "docs/guide.md", "python") if "Engine.load" in b)
    (engine,) = blocks(ROOT / "docs/engine.md", "python")
    for program in (readme, guide, engine):
        names: dict[str, object] = {}
        exec(program, names)
        assert isinstance(names["frames"], np.ndarray)
        assert names["frames"].shape[0] == 4


def test_the_guide_explains_every_key_an_evaluation_gives():
    text = (ROOT / "docs/guide.md").read_text()
    described = set(re.findall(r"yaw_\w+|skill_\w+|psnr_1s", str(evaluate_player.__doc__)))
    assert len(described) > 10, "the description no longer lists its keys"
    told = [re.compile(word.replace("*", r"\w+")) for word in re.findall(r"`([a-z0-9_*]+)`", text)]
    assert [key for key in sorted(described) if not any(t.fullmatch(key) for t in told)] == []
