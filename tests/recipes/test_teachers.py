"""A diffusers transformer as the real score of a recipe: named, checked, planned, trained against."""

from __future__ import annotations

import json

import pytest
import torch

from tests.conftest import randomise
from tests.recipes.test_wan_chain import SIZES, adapted, brought, miniature  # noqa: F401, fixtures
from worldline.models.convert import ConvertError
from worldline.models.diffusers_teacher import DiffusersTeacher, TeacherError
from worldline.models.registry import load_model
from worldline.recipes.builder import RecipeError
from worldline.recipes.conversion import BUILDERS
from worldline.recipes.footprint import Costs, Setting, assess, roles
from worldline.recipes.graph import hashes
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import plan, run
from worldline.recipes.teachers import described, fingerprint
from worldline.recipes.workspace import Workspace
from worldline.schema import WorldlineError

diffusers = pytest.importorskip("diffusers", reason="teachers from diffusers need it")

WAN = dict(
    num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=32, freq_dim=16, ffn_dim=96,
    num_layers=3, rope_max_seq_len=32,
)  # fmt: skip
LTX = dict(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2,
    caption_channels=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A pipeline's folder with a transformer wider and deeper than the student."""
    folder = tmp_path_factory.mktemp("pipelines") / "Wan-14B-Diffusers"
    model = randomise(diffusers.WanTransformer3DModel(**WAN), seed=5, std=0.2)
    model.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    return folder


@pytest.fixture(scope="module")
def ltx(tmp_path_factory):
    """A second family: a transformer's folder alone."""
    folder = tmp_path_factory.mktemp("pipelines") / "ltx"
    randomise(diffusers.LTXVideoTransformer3DModel(**LTX), seed=6, std=0.2).save_pretrained(folder)
    return folder


def recipe_of(brought, folder, *sets: str, name: str = "wan-1.3b"):  # noqa: F811
    named = json.dumps({"diffusers": str(folder), "per_frame": True})
    return load_recipe(name, [*miniature(name, brought), f"stages.dmd.real={named}", *sets])


@pytest.mark.parametrize("family", ["wan", "ltx"])
@pytest.mark.parametrize("name", ["wan-1.3b", "wan-1.3b-small"])
def test_its_stage_learns_from_it(family, name, brought, adapted, tmp_path, request):  # noqa: F811
    """The real score that distribution matching asks is the folder's, and the student moves by it."""
    folder = request.getfixturevalue(family)
    recipe = recipe_of(brought, folder, name=name)
    ws = Workspace(recipe, adapted[1])
    torch.manual_seed(0)
    built = BUILDERS["dmd"](ws, recipe.stages["dmd"], "dmd", tmp_path)
    real = built.method.roles["real"]
    assert isinstance(real, DiffusersTeacher)
    assert (
        type(real.transformer).__name__ == {"wan": "WanTransformer3DModel", "ltx": "LTXVideoTransformer3DModel"}[family]
    )
    assert real.transformer.proj_out.weight.dtype == torch.bfloat16, "frozen networks are kept in bf16"
    assert not any(p.requires_grad for p in real.parameters())
    batch = built.data.batch(0, 0, 1, torch.device("cpu"))

    def gradient() -> float:
        from worldline.methods.base import Rng

        with torch.autocast("cpu", torch.bfloat16):
            return float(built.method.generator_loss(batch, Rng(0, 0))["gradient"])

    before = gradient()
    torch.nn.init.zeros_(real.transformer.proj_out.weight)
    assert gradient() != before


def test_a_run_ends_with_a_world(wan, brought, adapted, tmp_path):  # noqa: F811
    recipe = recipe_of(brought, wan, name="wan-1.3b-small")
    result = run(recipe, tmp_path / "run", fork=adapted[1])
    assert [r.status for r in result.records] == ["done"] * len(result.records)
    assert (tmp_path / "run" / "world" / "world.json").is_file()
    student, other = (load_model(d / "dmd" / "model").state_dict() for d in (tmp_path / "run", adapted[1]))
    assert any(not torch.equal(v, other[k]) for k, v in student.items()), "another teacher, another student"
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.stages["dmd"].real == recipe.stages["dmd"].real


def test_its_weights_are_part_of_the_stage(wan, brought, tmp_path):  # noqa: F811
    """Other weights in the folder: only the stage that asks it, and what follows, is done again."""
    folder = tmp_path / "copy"
    randomise(diffusers.WanTransformer3DModel(**WAN), seed=5).save_pretrained(folder)
    recipe = recipe_of(brought, folder)
    before = hashes(plan(recipe, tmp_path))
    randomise(diffusers.WanTransformer3DModel(**WAN), seed=9).save_pretrained(folder)
    fingerprint.cache_clear()
    after = hashes(plan(recipe, tmp_path))
    assert [name for name in before if before[name] != after[name]] == ["dmd", "world"]


def test_the_plan_counts_it(wan, brought):  # noqa: F811
    small = "data.video={height: 32, width: 32, frames: 13}"
    recipe = recipe_of(brought, wan, small)
    theirs = diffusers.WanTransformer3DModel(**WAN)
    count = sum(p.numel() for p in theirs.parameters())
    costs = Costs(recipe, recipe.stages["dmd"], cameras=True, on_cpu=True)
    role = next(r for r in roles(recipe, recipe.stages["dmd"], costs.config) if r.name == "real (diffusers)")
    assert role.parameters == count
    assert role.states(Setting(1, 1, True, "adamw", shards=8))["weights"] == 2 * count, (
        "whole, in bf16, on every device"
    )

    from torch.utils.flop_counter import FlopCounterMode

    T, H, W = 4, 4, 4
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        theirs(torch.zeros(1, 4, T, H, W), torch.zeros(1), torch.zeros(1, SIZES["text_len"], 32))
    assert (costs.clip.height, costs.clip.width) == (H, W)
    assert costs.real(T).flops == pytest.approx(counted.get_total_flops(), rel=0.35), (
        "an estimate: text is not per token"
    )


@pytest.mark.slow
def test_a_stage_is_planned_with_it(wan, brought):  # noqa: F811
    found = {}
    for recipe in (recipe_of(brought, wan), load_recipe("wan-1.3b", miniature("wan-1.3b", brought))):
        costs = Costs(recipe, recipe.stages["dmd"], cameras=True, on_cpu=False)
        found[bool(costs.teachers)] = assess(costs)
    own = next(r for r in found[False].networks if r.name == "real")
    theirs = next(r for r in found[True].networks if r.name == "real (diffusers)")
    more = 2 * theirs.parameters - (4 * own.parameters - 2 * own.matrices)
    assert found[True].memory["weights"] - found[False].memory["weights"] == more
    assert found[True].updates[0].flops > found[False].updates[0].flops


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{diffuser: a/b}", "unknown key; did you mean 'diffusers'"),
        ("{per_frame: true}", "missing"),
        ("{diffusers: gone/away}", r"no config\.json"),
        ("{diffusers: 3}", "expected a str"),
    ],
)
def test_a_wrong_name_fails_before_anything_runs(value, message, brought, tmp_path):  # noqa: F811
    sets = [*miniature("wan-1.3b", brought), f"stages.dmd.real={value}"]
    with pytest.raises((RecipeError, TeacherError), match=message):
        plan(load_recipe("wan-1.3b", sets), tmp_path)


def test_a_transformer_that_cannot_answer_is_refused(wan, brought, tmp_path):  # noqa: F811
    def refused(folder, message: str, *sets: str) -> None:
        with pytest.raises(WorldlineError, match=message):
            plan(recipe_of(brought, folder, *sets), tmp_path)
        if "gan_weight" not in message:  # which no recipe can say at all
            recipe = recipe_of(brought, folder, *sets)
            with pytest.raises(WorldlineError, match=message):
                Costs(recipe, recipe.stages["dmd"], cameras=True, on_cpu=True)

    def saved(**changes):
        folder = tmp_path / f"odd{len(list(tmp_path.iterdir()))}"
        diffusers.WanTransformer3DModel(**{**WAN, **changes}).save_pretrained(folder)
        return folder

    refused(wan, "rollout.prefix is 1 .*per_frame: true", "stages.dmd.real.per_frame=null")
    refused(saved(in_channels=8), "latents of 8 channels, this model's have 4")
    refused(saved(text_dim=16), "prompts of width 16, this run's have 32")
    refused(wan, "gan_weight needs a `real` of this package", "stages.dmd.options.gan_weight=0.1")
    cut = saved()
    weights = next(cut.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:4000])
    with pytest.raises(ConvertError, match="cut short"):
        plan(recipe_of(brought, cut), tmp_path)
    config = json.loads((wan / "transformer" / "config.json").read_text())
    for name, message in (
        ("HunyuanVideoTransformer3DModel", "needs more than a prompt"),
        ("CogVideoXTransformer3DModel", "expected one of Wan"),
    ):
        folder = saved()
        (folder / "config.json").write_text(json.dumps({**config, "_class_name": name}))
        refused(folder, message)


def test_a_diffusers_folder_as_a_model_directory_is_told_apart(wan, brought, tmp_path):  # noqa: F811
    sets = [*miniature("wan-1.3b", brought), f"stages.dmd.real={wan}"]
    with pytest.raises(WorldlineError, match=r"is a diffusers folder.*worldline convert.*real: \{diffusers:"):
        plan(load_recipe("wan-1.3b", sets), tmp_path)
    with pytest.raises(RecipeError, match="is a dict; expected a str"):
        load_recipe("wan-1.3b", [*miniature("wan-1.3b", brought), f"stages.cd.teacher={{diffusers: {wan}}}"])


def test_only_a_bidirectional_role_may_be_one(wan, brought):  # noqa: F811
    recipe = recipe_of(brought, wan)
    assert {name: list(described(recipe, s)) for name, s in recipe.stages.items()} == {
        "camera": [], "ar": [], "ode": [], "cd": [], "dmd": ["real"],
    }  # fmt: skip
