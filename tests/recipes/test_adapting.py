"""Going on from an existing world model: every foreign layout is recognised and starts as what it was; stages, teachers and
clips are found; a run ends in a world that streams."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import random_cameras, randomise
from tests.models.convert.conftest import write
from tests.models.convert.test_hunyuan import original
from worldline.cli import parser
from worldline.functional.camera import cameras_of
from worldline.models.hunyuan15 import HunyuanConfig, HunyuanModel
from worldline.models.registry import load_model, save_model
from worldline.models.wan import WanConfig, WanModel
from worldline.recipes.adapting import Wishes, adapt, described
from worldline.recipes.load import load_recipe, save_recipe
from worldline.recipes.pipeline import run
from worldline.recipes.source_model import AdaptError, default_recipe, mapping, prepare, recognise
from worldline.recipes.workspace import Workspace
from worldline.schema import Controls, TextEmbedding
from worldline.stream.engine import Engine

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=1, text_dim=64, text_len=512)
HY = HunyuanConfig(
    dim=32, num_heads=2, num_layers=1, text_dim=64, text_lens=(1000, 0, 0), in_channels=16, out_channels=16,
    patch_size=(1, 2, 2), ffn_dim=48, refiner_layers=1, refiner_ffn_dim=32, rope_dims=(4, 6, 6),
)  # fmt: skip
HY_RECIPE = [
    "model.variant=nano-hy",
    "model.changes={dim: 32, ffn_dim: 48, num_heads: 2, num_layers: 1, rope_dims: [4, 6, 6], refiner_ffn_dim: 32}",
]
BOTH = {"camera": "branch", "actions": 256}

# path, layout written, parts of the model, what it is recognised as, its kind
FOREIGN = [
    ("minWM/Wan21/Action2V/bidirectional/model.pt", "self-forcing", {"camera": "branch"}, "minWM", "bidirectional"),
    ("minWM/Wan21/Action2V/ar_diffusion_tf/model.pt", "self-forcing-fsdp", {"camera": "branch"}, "minWM", "causal"),
    ("minWM/Wan21/Action2V/causal_ode/model.pt", "self-forcing", {"camera": "branch"}, "minWM", "few-step"),
    ("minWM/Wan21/Action2V/causal_cd/model.pt", "self-forcing-ema", {"camera": "branch"}, "minWM", "few-step"),
    ("minWM/Wan21/Action2V/dmd/model.pt", "self-forcing-ema-fsdp", {"camera": "branch"}, "minWM", "few-step"),
    ("exported/dmd/model.pt", "minwm-v0.2", {"camera": "branch"}, "minWM v0.2 export", "few-step"),
    ("checkpoints/self_forcing_dmd.pt", "self-forcing-ema", {}, "Self-Forcing, Causal-Forcing or CausVid", "few-step"),
    ("Causal-Forcing/chunkwise/ar_diffusion.pt", "self-forcing", {}, "Self-Forcing, Causal-Forcing or CausVid", "causal"),
    ("HY-WorldPlay/wan/ar_model/model.pt", "worldplay-fsdp", BOTH, "HY-WorldPlay 5B", "causal"),
    ("HY15/Action2V/bidirectional/x.safetensors", "hunyuan", {"camera": "branch"}, "minWM, Hun", "bidirectional"),
    ("HY15/Action2V/ar_diffusion_tf/x.safetensors", "hunyuan", {"camera": "branch"}, "minWM, Hun", "causal"),
    ("HY15/Action2V/dmd_ourbi/x.safetensors", "hunyuan", {"camera": "branch"}, "minWM, Hun", "few-step"),
    ("HY15/TI2V/causal_cd/x.safetensors", "hunyuan", {}, "original Hun", "few-step"),
    ("HY-WorldPlay/bidirectional_model/x.safetensors", "hunyuan", BOTH, "HY-WorldPlay, Hun", "bidirectional"),
    ("HY-WorldPlay/ar_model/x.safetensors", "hunyuan", BOTH, "HY-WorldPlay, Hun", "causal"),
    ("HY-WorldPlay/ar_distilled_action_model/model.safetensors", "hunyuan", BOTH, "HY-WorldPlay, Hun", "few-step"),
]  # fmt: skip


def foreign(root: Path, path: str, layout: str, parts: dict) -> tuple[Path, torch.nn.Module]:
    """A file of that project with random weights, and the model they are of."""
    file = root / path
    file.parent.mkdir(parents=True)
    if layout != "hunyuan":
        model = randomise(WanModel(replace(WAN, **parts)), 1)
        return write(file, model.state_dict(), layout), model.eval()
    model = randomise(HunyuanModel(replace(HY, **parts)), 1)
    save_file(original(model.state_dict()), file)
    (file.parent / "config.json").write_text(json.dumps({"rope_dim_list": [4, 6, 6]}))
    return file, model.eval()


def same_clip(model):
    """One call of a model with moving cameras: its output for a fixed clip."""
    rng = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(1, 3, 16, 4, 4, generator=rng), torch.full((1, 3), 0.6)
    length = model.config.text_len
    text = TextEmbedding(torch.randn(1, length, 64, generator=rng), torch.arange(length)[None] < 5, "")
    step = torch.eye(4).repeat(1, 3, 1, 1)
    step[0, :, 2, 3] = -0.08 * torch.arange(3)
    cameras = cameras_of(step, random_cameras(1, 3).K)
    with torch.no_grad():
        return model(x, sigma, model.text_context(text), cameras=cameras)


@pytest.mark.parametrize(("path", "layout", "parts", "known_as", "kind"), FOREIGN)
def test_every_foreign_layout_starts_as_what_it_was(tmp_path, smallest, path, layout, parts, known_as, kind):
    file, model = foreign(tmp_path, path, layout, parts)
    source = recognise(str(file), num_heads=2)
    assert source.report.layout.startswith(known_as)
    assert source.maturity == kind
    recipe = load_recipe(smallest, HY_RECIPE if layout == "hunyuan" else [])
    apart = layout == "hunyuan" and kind == "bidirectional"  # its prompt was joint, and will be apart
    made = adapt(source, recipe, Wishes(camera="branch", motion=True), tmp_path / "source")
    told = described(made)
    assert told["licence"] == source.report.licence
    assert ("same outputs" in told["starts as"]) != apart
    parts_added = {"motion_embedder"} | (set() if "camera" in parts else {"prope_o"})
    assert {p for k in made.mapping.new for p in ("motion_embedder", "prope_o") if p in k} == parts_added
    assert all("motion_embedder" in k or "prope_o" in k for k in made.mapping.new)
    assert not made.mapping.dropped
    weights = prepare(source, made.mapping, tmp_path / "source", num_heads=2)
    assert weights == Path(made.recipe.base.path)
    loaded = Workspace(made.recipe, tmp_path / "run").model("base")
    assert loaded.config.motion
    assert loaded.config.camera == "branch"
    if hasattr(loaded.config, "text_mode") and not apart:
        model.config = replace(model.config, text_mode="decoupled")  # as its causal stages run
    if not apart:
        torch.testing.assert_close(same_clip(loaded), same_clip(model), atol=1e-5, rtol=1e-5)
        randomise(loaded, 2)
        loaded.load_state_dict(model.state_dict(), strict=False)  # the new parts alone are random now: they act
        assert (same_clip(loaded) - same_clip(model)).abs().max() > 1e-3


def test_labels_to_cameras_and_back_to_none(tmp_path, smallest):
    """81 labels stay beside a new camera; left out when asked, which is told and is another function."""
    file, model = foreign(tmp_path, "HY-WorldPlay/wan/ar_model/model.pt", "worldplay-fsdp", {"actions": 256})
    source, recipe = recognise(str(file), num_heads=2), load_recipe(smallest)
    made = adapt(source, recipe, Wishes(camera="branch"), tmp_path / "a")
    assert (made.recipe.model.camera, made.recipe.model.changes["actions"]) == ("branch", 256)
    assert made.first == "camera"  # new controls are learnt first
    prepare(source, made.mapping, tmp_path / "a", num_heads=2)
    torch.testing.assert_close(same_clip(Workspace(made.recipe, tmp_path).model("base")), same_clip(model))
    bare = adapt(source, recipe, Wishes(camera="branch", actions=0), tmp_path / "b")
    assert bare.mapping.leave_out == ("action",)
    assert len(bare.mapping.dropped) == 4
    assert "actions 256 is left out" in described(bare)["starts as"]
    prepare(source, bare.mapping, tmp_path / "b", num_heads=2)
    assert Workspace(bare.recipe, tmp_path).model("base").config.actions == 0
    assert json.loads((tmp_path / "b" / "card.json").read_text())["converted"]["left_out"] == ["action"]
    stamp = (tmp_path / "b" / "model.safetensors").stat().st_mtime_ns
    prepare(source, bare.mapping, tmp_path / "b", num_heads=2)
    assert (tmp_path / "b" / "model.safetensors").stat().st_mtime_ns == stamp  # made once


def test_fused_cameras_are_said_to_change_the_function():
    assert mapping(WAN, replace(WAN, camera="branch")).unlike == ""
    assert mapping(WAN, replace(WAN, camera="plucker", motion=True, actions=10)).unlike == ""
    assert "fused cameras turn queries" in mapping(WAN, replace(WAN, camera="fused")).unlike
    gives_way = mapping(replace(WAN, camera="branch"), replace(WAN, camera="fused"))
    assert "camera branch gives way to fused" in gives_way.unlike
    assert gives_way.leave_out == ("camera",)
    assert all("prope_o" in name for name in gives_way.dropped)


@pytest.fixture
def trained(tmp_path):
    """A model directory of ours with a camera branch, and how to call it a kind."""
    save_model(randomise(WanModel(replace(WAN, camera="branch", text_len=24))), tmp_path / "own", {"licence": "CC-X"})
    return str(tmp_path / "own")


def plan_of(path, smallest, wishes, kind="causal", stages=()):
    return adapt(recognise(path), load_recipe(smallest, stages), replace(wishes, maturity=kind), Path("out"))


@pytest.mark.parametrize(
    ("kind", "wishes", "stages", "left_out"),
    [
        ("bidirectional", Wishes(), ["ar", "ode", "cd", "dmd"], 0),
        ("causal", Wishes(), ["ode", "cd"], 1),
        ("causal", Wishes(score="models/bi"), ["ode", "cd", "dmd"], 0),
        ("causal", Wishes(chunk=3), ["ar", "ode", "cd"], 1),
        ("few-step", Wishes(steps=4), ["ar", "ode", "cd"], 1),
        ("few-step", Wishes(steps=4, teacher="models/ar"), ["ode", "cd"], 1),
        ("few-step", Wishes(stage="dmd", score="models/bi"), ["dmd"], 0),
        ("causal", Wishes(motion=True), ["camera", "ar", "ode", "cd", "dmd"], 0),
        ("causal", Wishes(stage="cd"), ["cd"], 1),
    ],
)
def test_the_first_stage_is_the_first_still_to_be_learnt(trained, smallest, kind, wishes, stages, left_out):
    made = plan_of(trained, smallest, wishes, kind)
    assert list(made.recipe.stages) == stages
    assert made.recipe.stages[stages[0]].init == "base"
    assert made.recipe.base.path == trained
    assert sum("is left out" in note for note in made.notes) == left_out
    for stage in made.recipe.stages.values():
        assert all(s in ("base", *stages) or "/" in s for s in stage.roles().values())
    if "ode" in stages and kind == "causal" and "ar" not in stages:
        assert made.recipe.stages["ode"].teacher == "base"
    if wishes.steps:
        assert made.recipe.rollout.steps == 4
        assert all(
            (s.options.steps, s.options.euler_steps) == (4, 4) for s in made.recipe.stages.values() if s.method == "ode"
        )


def test_clips_are_cut_to_chunks_and_windows_grow(trained, smallest):
    made = plan_of(trained, smallest, Wishes(chunk=2, train_steps=1))  # clips of 4 latents: 1 given, 3 made
    assert made.recipe.data.latents == 3
    assert any("trains on 3 of 4 latents" in note for note in made.notes)
    assert made.recipe.rollout.window == 4
    assert all(stage.train.steps == 1 for stage in made.recipe.stages.values())
    wide = plan_of(trained, smallest, Wishes(chunk=3))
    assert wide.recipe.rollout.window == 6
    with pytest.raises(AdaptError, match="no chunk of 4 behind 1 given"):
        plan_of(trained, smallest, Wishes(chunk=4))


def test_refusals_say_what_to_name(trained, smallest, tmp_path):
    with pytest.raises(AdaptError, match="--kind bidirectional, causal or few-step"):
        plan_of(trained, smallest, Wishes(), None)
    with pytest.raises(AdaptError, match="`teacher` must be a multi-step causal model \\(--teacher\\)"):
        plan_of(trained, smallest, Wishes(stage="cd"), "few-step")
    with pytest.raises(AdaptError, match="no such stage; did you mean 'ode'"):
        plan_of(trained, smallest, Wishes(stage="odes"))
    with pytest.raises(AdaptError, match="for a HunyuanConfig, the checkpoint is a WanConfig"):
        plan_of(trained, smallest, Wishes(), stages=HY_RECIPE)
    with pytest.raises(AdaptError, match="no published size"):
        default_recipe(recognise(trained).report)
    state = randomise(WanModel(WAN)).state_dict()
    del state["blocks.0.ffn.net.2.bias"]
    file = write(tmp_path / "dmd.pt", state, "self-forcing")
    with pytest.raises(AdaptError, match=r"not quite Self-Forcing.*1 missing"):
        recognise(str(file), num_heads=2)
    file = write(tmp_path / "whole.pt", randomise(WanModel(WAN)).state_dict(), "self-forcing")
    with pytest.raises(AdaptError, match="give --heads"):
        recognise(str(file))


def test_the_bundled_world_and_base_are_known(smallest):
    world, base = recognise("nano"), recognise("nano/base")
    assert (world.maturity, base.maturity) == ("few-step", "bidirectional")
    assert default_recipe(world.report) == default_recipe(base.report) == "nano-demo"
    made = adapt(world, load_recipe("nano-demo"), Wishes(chunk=2), Path("out"))
    assert made.recipe.base.path == str(world.path)
    assert (made.first, made.recipe.rollout.chunk, made.recipe.model.camera) == ("ar", 2, world.config.camera)
    assert made.mapping.new == made.mapping.dropped == ()
    same = adapt(base, load_recipe("nano-demo"), Wishes(), Path("out"))
    assert same.first == "camera"  # it takes no controls: the recipe's are learnt


@pytest.mark.parametrize(
    ("path", "layout", "parts", "wishes", "overrides", "terms"),
    [
        ("HY-WorldPlay/wan/ar_model/model.pt", "worldplay-fsdp", BOTH, Wishes(chunk=1), [], "Tencent HY-WorldPlay"),
        ("HY-WorldPlay/ar_model/x.safetensors", "hunyuan", BOTH, Wishes(chunk=1), HY_RECIPE, "Tencent Hunyuan"),
    ],
)
def test_a_foreign_model_is_distilled_into_a_world_that_streams(
    tmp_path, smallest, path, layout, parts, wishes, overrides, terms
):
    file, _ = foreign(tmp_path, path, layout, parts)
    source = recognise(str(file), num_heads=2)
    made = adapt(
        source, load_recipe(smallest, overrides), replace(wishes, stage="cd", train_steps=1), tmp_path / "source"
    )
    prepare(source, made.mapping, tmp_path / "source", num_heads=2)
    save_recipe(made.recipe, tmp_path / "run" / "recipe.yaml")
    result = run(load_recipe(tmp_path / "run" / "recipe.yaml"), tmp_path / "run", until="world")
    assert load_model(result.world).config.actions == 256
    session = Engine.load(result.world, threads=1, warm=False).session(seed=1)
    for _ in range(5):  # past the window
        assert session.step(Controls.still(4)).shape == (4, 32, 32, 3)
    for card in (tmp_path / "source", tmp_path / "run" / "cd" / "model", result.world):
        assert terms in json.loads((card / "card.json").read_text())["licence"]


def test_the_command_says_what_it_found_and_prints_a_recipe(tmp_path, smallest, capsys):
    file, _ = foreign(tmp_path, "minWM/Action2V/ar_diffusion_tf/model.pt", "self-forcing", {"camera": "branch"})
    words = [
        "adapt",
        str(file),
        "--recipe",
        str(smallest),
        "--heads",
        "2",
        "--steps",
        "1",
        "--run-dir",
        str(tmp_path / "r"),
    ]
    args = parser().parse_args([*words, "--print"])
    assert args.main(args) == 0
    said = capsys.readouterr().out
    for word in (
        "licence: ",
        "minWM",
        "causal",
        "camera branch",
        "the same outputs",
        "dmd is left out",
        "stages:",
        "source",
    ):
        assert word in said
    assert not (tmp_path / "r").exists()
    args = parser().parse_args([*words, "--train-steps", "1", "--until", "ode", "--no-preflight"])
    assert args.main(args) == 0
    assert load_model(tmp_path / "r" / "ode" / "model").config.camera == "branch"
    again = recognise(str(tmp_path / "r"))  # a run, without a world yet: its last finished stage
    assert (again.maturity, again.run) == ("few-step", tmp_path / "r")
    model = recognise(str(tmp_path / "r" / "source"))  # converted: its card knows where it is from
    assert (model.maturity, model.ours) == ("causal", True)
    # A finished stage of the same run stands in for one that is not run: here `ode` as a teacher by another recipe's name.
    (tmp_path / "r" / "ode").rename(tmp_path / "r" / "ar")
    made = adapt(replace(again, path=tmp_path / "r" / "ar" / "model"), load_recipe(smallest), Wishes(steps=1), tmp_path)
    assert list(made.recipe.stages) == ["ode", "cd"]
    assert made.recipe.stages["cd"].teacher == str(tmp_path / "r" / "ar" / "model")
