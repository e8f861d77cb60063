"""Recipe files: the library loads, parents merge, overrides apply, errors name the key."""

from __future__ import annotations

import pytest

from worldline.recipes.builder import RecipeError
from worldline.recipes.load import library, load_recipe, merge, override, read, recipe_hash, save_recipe
from worldline.schema import TimeGrid

CHILD = """
extends: nano-demo
name: mine
stages:
  camera: {train: {lr: 1e-4}}
  dmd: null
"""


@pytest.fixture
def child(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(CHILD)
    return path


@pytest.mark.parametrize("name", sorted(library()))
def test_library_recipes_load_and_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.about, "a library recipe says what it does"
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    assert recipe_hash(load_recipe(tmp_path / "resolved.yaml")) == recipe_hash(recipe)


@pytest.mark.parametrize("name", sorted(library()))
def test_library_recipes_render_clips_as_long_as_they_train_on(name):
    data = load_recipe(name).data
    assert (data.latents or 1) <= TimeGrid().latent_frames((data.video or data.build).frames)


def test_a_child_states_the_difference(child):
    mine, parent = load_recipe(child), load_recipe("nano-demo")
    assert mine.name == "mine"
    assert mine.stages["camera"].train.lr == 1e-4
    assert mine.stages["camera"].train.steps == parent.stages["camera"].train.steps
    assert list(mine.stages) == [s for s in parent.stages if s != "dmd"]
    assert recipe_hash(mine) != recipe_hash(parent)


def test_overrides_are_typed(child):
    recipe = load_recipe(child, ["stages.camera.train.lr=3e-4", "rollout.window=null", "data.build.maps=2"])
    assert recipe.stages["camera"].train.lr == 3e-4
    assert recipe.rollout.window is None
    assert recipe.data.build.maps == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stages.camera.train.lrr=1", r"mine\.yaml: stages\.camera\.train\.lrr: unknown key; did you mean 'lr'"),
        ("stagez.camera=1", r"stagez: unknown key; did you mean 'stages'"),
        ("stages.camera.method=finetun", r"stages\.camera\.method: .*did you mean 'finetune'"),
        ("stages.ar.init=camra", r"stages\.ar\.init: no earlier stage 'camra'; did you mean 'camera'"),
        ("stages.ar.teacher=camera", r"teacher_forcing has no `teacher`"),
        ("stages.report={method: finetune}", r"stages\.report: expected a-z"),
        ("model.changes={num_layer: 2}", r"num_layer: unknown key; did you mean 'num_layers'"),
        ("model.variant=nanoo", r"variant 'nanoo'"),
        ("rollout.chunk", r"--set rollout.chunk: expected key=value"),
        ("rollout.chunk=[", r"not valid YAML"),
    ],
)
def test_a_typo_fails_at_once(child, assignment, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(child, [assignment])


def test_unknown_recipes_and_circles(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'nano-demo'"):
        load_recipe("nano-dem")
    with pytest.raises(RecipeError, match="no recipe file"):
        load_recipe("missing.yaml")
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(RecipeError, match="a circle"):
        read(tmp_path / "a.yaml")


def test_merging_leaves_the_parent_alone():
    base = {"a": {"b": 1, "c": 2}}
    assert merge(base, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert override(base, "a.d=1e-4") == {"a": {"b": 1, "c": 2, "d": "1e-4"}}
    assert base == {"a": {"b": 1, "c": 2}}
