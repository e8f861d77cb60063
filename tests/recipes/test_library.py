"""The recipes that ship: all load strictly, say what they are, and agree with themselves."""

from __future__ import annotations

import pytest

from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.models.registry import variant
from worldline.models.wan_vae import WAN_VAE_VARIANTS
from worldline.recipes.footprint import clip_of
from worldline.recipes.load import library, load_recipe
from worldline.recipes.schema import Recipe
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError
from worldline.stream.world import check_streamable

NAMES = sorted(library())
WAN = [name for name in NAMES if name.startswith("wan-")]


@pytest.fixture(scope="module")
def recipes() -> dict[str, Recipe]:
    return {name: load_recipe(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_named_as_its_file_and_its_clips_chunk(name, recipes):
    recipe = recipes[name]
    assert recipe.name == name
    clip = clip_of(recipe)
    assert (clip.frames - recipe.rollout.prefix) % recipe.rollout.chunk == 0


def test_the_lines_and_their_variants_are_there():
    assert set(WAN) >= {
        "wan-1.3b",
        "wan-1.3b-node",
        "wan-1.3b-small",
        "wan-1.3b-fast",
        "wan-1.3b-minwm",
        "wan-1.3b-minwm-cd",
        "wan-1.3b-causal-forcing",
        "wan-5b",
        "wan-5b-node",
        "wan-5b-small",
    }


HUNYUAN = [name for name in NAMES if name.startswith("hunyuan-")]


@pytest.mark.parametrize("name", HUNYUAN)
def test_hunyuan_recipes_take_everything_from_the_user(name, recipes):
    recipe = recipes[name]
    assert None not in (recipe.data.path, recipe.codec.path, recipe.base.path, recipe.text.path)
    config = recipe.model.config()
    assert config == variant("hunyuan-1.5", camera="branch", text_mode="decoupled"), "streams need a prompt of its own"
    assert (clip_of(recipe).height, clip_of(recipe).width, clip_of(recipe).tokens) == (30, 52, 1560)
    assert [s.train.steps for s in recipe.stages.values()] == [8000, 4000, 1500, 1500, 500], "minWM's"
    check_streamable(recipe.rollout.visibility())
    assert all((s.lora is not None) == ("-small" in name) for s in recipe.stages.values())


@pytest.mark.parametrize("name", WAN)
def test_wan_recipes_take_everything_from_the_user(name, recipes):
    recipe = recipes[name]
    assert None not in (recipe.data.path, recipe.codec.path, recipe.base.path, recipe.text.path)
    assert recipe.model.config().in_channels in {v.latent_channels for v in WAN_VAE_VARIANTS.values()}
    assert recipe.rollout.prefix == 1, "a world starts from one image"
    batch = {s.train.batch_size * s.train.accumulation for s in recipe.stages.values()}
    assert batch <= {16, 32, 64}, "the global batches of minWM and Causal-Forcing, and the least that works"
    check_streamable(recipe.rollout.visibility())
    assert all((s.lora is not None) == ("-small" in name) for s in recipe.stages.values())


def test_minwm_recipes_hold_its_published_values(recipes):
    ode, cd = recipes["wan-1.3b-minwm"], recipes["wan-1.3b-minwm-cd"]
    assert list(ode.stages) == ["camera", "ar", "ode", "dmd"]
    assert list(cd.stages) == ["camera", "ar", "cd", "dmd"]
    assert [s.train.steps for s in ode.stages.values()] == [5000, 4000, 2000, 200]
    assert [s.train.betas for s in ode.stages.values()] == [(0.0, 0.999), (0.0, 0.999), (0.9, 0.999), (0.0, 0.999)]
    for stage in (*ode.stages.values(), *cd.stages.values()):
        assert (stage.train.lr, stage.train.clip, stage.train.weight_decay) == (2e-6, 10.0, 0.01)
        assert stage.train.ema_decay == 0
    legacy, dmd = cd.stages["cd"].options, ode.stages["dmd"]
    assert isinstance(legacy, ConsistencyConfig)
    assert (legacy.grid_steps, legacy.include_terminal_pair, legacy.grid_dtype) == (50, False, "bf16")
    assert isinstance(dmd.options, DMDConfig)
    assert (dmd.options.guidance, dmd.options.critic_updates, dmd.train.role_lr) == (4.0, 5, {"fake": 4e-7})


def test_our_defaults_are_the_corrected_ones(recipes):
    for name in ("wan-1.3b", "wan-5b"):
        options = recipes[name].stages["cd"].options
        assert isinstance(options, ConsistencyConfig)
        assert options.include_terminal_pair
        assert options.grid_dtype == "fp32"


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "chunk", "latents"),
    [
        ("wan-1.3b", 1, 21),
        ("wan-1.3b", 3, 19),
        ("wan-1.3b", 4, 21),
        ("wan-5b", 1, 31),
        ("wan-5b", 3, 31),
        ("wan-5b", 4, 29),
    ],
)
def test_documented_chunks_and_steps_are_overrides(name, chunk, latents, steps):
    words = [f"rollout.chunk={chunk}", f"data.latents={latents}", f"rollout.steps={steps}"]
    recipe = load_recipe(name, [*words, f"stages.ode.options.steps={steps}"])
    clip = clip_of(recipe)
    assert clip.frames == latents
    assert (clip.height, clip.width) == ((60, 104) if name == "wan-1.3b" else (44, 80))
    assert len(RolloutPlan.few_step(recipe.rollout.visibility(), steps).sigmas) == steps


def test_what_the_user_has_not_brought_is_said(tmp_path):
    ws = Workspace(load_recipe("wan-1.3b", [f"base.path={tmp_path}/base", f"text.path={tmp_path}/text"]), tmp_path)
    with pytest.raises(WorldlineError, match=r"base: .*base is no model directory"):
        ws.external("base")
    with pytest.raises(WorldlineError, match="text has neither text_encoder/"):
        ws.text_encoder()


def test_a_umt5_recipe_needs_its_folder():
    with pytest.raises(WorldlineError, match="kind umt5 needs `path`"):
        load_recipe("nano-demo", ["text.kind=umt5"])
