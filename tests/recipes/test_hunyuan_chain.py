"""HunyuanVideo's architecture through every stage of a recipe, to a world that streams: the same code as for Wan's."""

from __future__ import annotations

import pytest

from worldline.models.hunyuan15 import HunyuanModel
from worldline.models.registry import load_model, save_model, variant, weights_hash
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import run
from worldline.schema import Controls, WorldlineError
from worldline.stream.engine import Engine

SIZES = "{dim: 32, ffn_dim: 48, num_heads: 2, num_layers: 1, rope_dims: [4, 6, 6], refiner_ffn_dim: 32, %s}"
STAGES = ["camera", "ar", "ode", "cd", "dmd"]


def overrides(more="motion: true"):
    return ["model.variant=nano-hy", f"model.changes={SIZES % more}"]


def test_the_whole_chain_makes_a_world_that_streams(smallest, tmp_path):
    result = run(load_recipe(smallest, overrides()), tmp_path / "run", until="world")
    assert isinstance(load_model(result.world), HunyuanModel)
    digests = [weights_hash(tmp_path / "run" / stage / "model") for stage in ["base", *STAGES]]
    assert len(set(digests)) == len(digests)
    session = Engine.load(result.world, threads=1, warm=False).session(seed=1)
    for _ in range(6):  # past the window
        assert session.step(Controls.still(4)).shape == (4, 32, 32, 3)


def test_a_base_with_a_joint_prompt_becomes_a_world_with_its_own(smallest, tmp_path):
    """As the published weights do: pretrained jointly, trained on apart."""
    sizes = load_recipe(smallest, overrides("text_mode: joint")).model.config("none")
    assert sizes.text_mode == "joint"
    save_model(HunyuanModel(sizes), tmp_path / "joint")
    more = [*overrides("text_mode: decoupled"), f"base.path={tmp_path / 'joint'}"]
    result = run(load_recipe(smallest, more), tmp_path / "run", until="ar")
    trained = load_model(tmp_path / "run" / "ar" / "model")
    assert trained.config.text_mode == "decoupled"
    assert result.world is None or not result.world.exists()


def test_weights_of_another_family_are_refused(smallest, tmp_path):
    save_model(HunyuanModel(variant("nano-hy")), tmp_path / "hunyuan")
    recipe = load_recipe(smallest, [f"base.path={tmp_path / 'hunyuan'}"])
    with pytest.raises(Exception, match="WanConfig") as found:
        run(recipe, tmp_path / "run", until="camera")
    assert isinstance(found.value, WorldlineError) or isinstance(found.value.__cause__, WorldlineError)


def test_an_injector_it_does_not_have_is_named(smallest):
    with pytest.raises(WorldlineError, match="none, branch or fused"):
        load_recipe(smallest, [*overrides(), "model.camera=plucker"])
