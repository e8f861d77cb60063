"""Stages are measured while they train: nothing learnt changes, the best weights are kept, and a stage may leave those."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.evaluate.panorama import episodes
from worldline.evaluate import episodes as held_out
from worldline.models.registry import load_model, weights_hash
from worldline.recipes.conversion import latents
from worldline.recipes.graph import hashes
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import plan, run
from worldline.recipes.validating import validation_episodes
from worldline.recipes.workspace import Workspace
from worldline.schema import WorldlineError
from worldline.train.log import read_log
from worldline.train.validation import history, read_best

QUIET = ("health.samples=false", "evaluate.episodes=0", "data.latents=4")
WATCHED = (*QUIET, "validate.every=2", "validate.steps=2", "validate.metric=psnr")


@pytest.fixture
def painted(monkeypatch):
    """Held-out episodes of a painted cylinder: no game engine is needed."""
    monkeypatch.setattr(held_out, "build_episodes", lambda *args, **kw: episodes(spin_frames=16, walk_frames=16))


def test_a_measured_stage_learns_the_same_and_keeps_its_best(smallest, tmp_path, painted):
    run(load_recipe(smallest, QUIET), tmp_path / "plain", until="ar")
    # The ar stage is streamed, the camera stage plays whole clips.
    run(load_recipe(smallest, WATCHED), tmp_path / "watched", until="ar")
    for stage, steps in (("camera", [2, 4]), ("ar", [2])):
        here = tmp_path / "watched" / stage
        assert weights_hash(here / "model") == weights_hash(tmp_path / "plain" / stage / "model")
        measured = history(here / "train")
        assert list(measured) == steps
        assert ("camera_use" in measured[2].figures) == (stage == "camera")
        assert [n["step"] for n in read_log(here / "train") if "validation/psnr" in n] == [s - 1 for s in steps]
        weights, what = read_best(here / "train")
        assert what["value"] == max(m.figures["psnr"] for m in measured.values())
        for key, value in load_model(here / "best" / "model").state_dict().items():
            assert value.equal(weights[key]), key
        card = json.loads((here / "best" / "model" / "card.json").read_text())["validation"]
        assert (card["metric"], card["step"], card["weights"]) == ("psnr", what["step"], "best")
        assert card["seconds"] > 0
    assert not (tmp_path / "watched" / "base" / "train" / "validation").exists(), "the base takes no cameras"
    assert not (tmp_path / "plain" / "camera" / "best").exists()


def test_later_stages_go_on_from_the_best_where_asked(smallest, tmp_path, painted):
    # By the gain's error after one step and after four, the first is the better or the last: whichever, it is taken.
    asked = ("stages.camera.validate.every=1", "stages.camera.validate.take=best", "stages.camera.validate.steps=2")
    metric = "stages.camera.validate.metric=cross_talk_size"
    run(load_recipe(smallest, [*QUIET, *asked, metric]), tmp_path / "run", until="camera")
    stage = tmp_path / "run" / "camera"
    weights, what = read_best(stage / "train")
    assert what["better"] == "lower"
    assert what["value"] == min(m.figures["cross_talk_size"] for m in history(stage / "train").values())
    taken = load_file(stage / "model" / "model.safetensors")
    assert all(taken[key].equal(value) for key, value in weights.items())
    card = json.loads((stage / "model" / "card.json").read_text())["validation"]
    assert (card["weights"], card["step"]) == ("best", what["step"])
    assert json.loads((stage / "last" / "model" / "card.json").read_text())["validation"]["step"] == 4


def digests(path, tmp_path, *overrides):
    return hashes(plan(load_recipe(path, overrides), tmp_path / "nowhere"))


def test_what_changes_no_weights_is_in_no_hash(smallest, tmp_path):
    plain = digests(smallest, tmp_path)
    assert digests(smallest, tmp_path, "validate.every=5", "stages.ar.validate.every=7") == plain
    assert digests(smallest, tmp_path, "data.pose_noise.smooth=0.5") == plain, "noise of no size"
    best = digests(smallest, tmp_path, "stages.ar.validate.every=7", "stages.ar.validate.take=best")
    changed = {name for name in plain if best[name] != plain[name]}
    assert {"ar", "ode", "cd", "dmd"} <= changed
    assert not changed & {"encode", "base", "camera"}
    noisy = digests(smallest, tmp_path, "data.pose_noise.rotation=1.0")
    changed = {name for name in plain if noisy[name] != plain[name]}
    assert {"camera", "ar", "dmd"} <= changed
    assert not changed & {"encode", "base", "codec"}, "what takes no cameras does not notice"


def test_noisy_cameras_reach_training_alone(smallest, tmp_path):
    recipe = load_recipe(smallest, [*QUIET, "data.pose_noise.rotation=2.0", "data.pose_noise.scale=0.5"])
    run(recipe, tmp_path / "run", until="encode")
    exact = latents(Workspace(load_recipe(smallest, QUIET), tmp_path / "run"))
    noisy = latents(Workspace(recipe, tmp_path / "run"))
    assert not exact.w2c.equal(noisy.w2c)
    assert exact.latents.equal(noisy.latents)
    assert exact.w2c[:, 0].equal(noisy.w2c[:, 0])


def test_the_maps_that_choose_are_not_those_that_judge(smallest, tmp_path):
    recipe = load_recipe(smallest, ["validate.every=1", "validate.seed=3", "evaluate.seed=3"])
    with pytest.raises(WorldlineError, match="expected another seed"):
        validation_episodes(Workspace(recipe, tmp_path), recipe.validate)
    for wrong, said in (("validate.take=best", "expected every >= 1"), ("validate.metric=yaw", "yaw_corr")):
        with pytest.raises(WorldlineError, match=said):
            load_recipe(smallest, [wrong])
