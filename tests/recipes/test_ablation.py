"""The runner of studies on the smallest models: every run once, stopped anywhere, gone on with, and a page at any time."""

from __future__ import annotations

import json

import pytest

from tests.evaluate.panorama import episodes
from worldline.evaluate import episodes as held_out
from worldline.recipes.ablation import ablate
from worldline.recipes.graph import Interrupted, Quiet
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import run
from worldline.recipes.studies import LEVELS, PRESETS, Preset, study_recipe, trials
from worldline.schema import WorldlineError


class Witness(Quiet):
    """Collects what was trained."""

    def __init__(self):
        self.trained = []

    def started(self, node, resumed):
        self.trained += [node.name] if node.name == "camera" else []


@pytest.fixture
def study(smallest, tmp_path, monkeypatch):
    """(preset, overrides): three runs of two steps from a codec and a base made before."""
    monkeypatch.setattr(held_out, "build_episodes", lambda *args, **kw: episodes(spin_frames=16, walk_frames=16))
    run(load_recipe(smallest, ["data.latents=4", "evaluate.episodes=0"]), tmp_path / "made", until="base")
    preset = Preset(
        recipe=str(smallest), latents=4, steps=2, every=1, rarely=2, batches=(1, 2), levels=("exact", "estimated"), seeds=1,
        episodes=1, denoising=1,
    )  # fmt: skip
    made = tmp_path / "made"
    return preset, (f"codec.path={made}/codec/model", f"base.path={made}/base/model")


def test_a_stopped_study_goes_on_and_does_nothing_twice(study, tmp_path, monkeypatch):
    preset, overrides = study
    out, first, second, third = tmp_path / "out", Witness(), Witness(), Witness()

    def stop(number, count, trial):
        if number == 3:
            raise Interrupted("camera")

    with pytest.raises(Interrupted, match="the same command goes on"):
        ablate(preset, out, overrides=overrides, progress=first, tell=stop)
    half = json.loads((out / "results.json").read_text())
    assert [r["name"] for r in half["runs"]] == ["exact-seed0", "estimated-seed0"]
    assert half["studies"]["batch"]["verdict"] == "missing"
    assert "2 of 3 finished" in (out / "ablation.html").read_text()

    results = ablate(preset, out, overrides=overrides, progress=second)
    assert [len(w.trained) for w in (first, second)] == [2, 1]
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["schema"] == "worldline.ablation/1"
    exact = results["runs"][0]
    assert [m["step"] for m in exact["measured"]] == [1, 2]
    assert {"yaw_corr", "psnr", "camera_use"} <= set(exact["measured"][0]["figures"])
    assert results["reference"]["errors"]["exact"]["rotation"] == 0
    assert 0.5 < results["reference"]["errors"]["estimated"]["rotation"] < 2
    assert all(s["verdict"] != "missing" for s in results["studies"].values())
    assert not list((out / "runs").rglob("checkpoints")), "models are kept, checkpoints of finished runs are not"

    # One study alone takes over what is there, and the page keeps the others.
    again = ablate(preset, out, ("steps",), overrides=overrides, progress=third)
    assert third.trained == []
    assert set(again["studies"]) == {"poses", "steps", "batch"}


def test_runs_differ_in_what_is_studied_and_in_nothing_else():
    preset = PRESETS["quick"]
    wanted = trials(preset)
    assert len(wanted) == len({t.name for t in wanted}) == 2 + 6 + 8
    assert [t.level for t in wanted[:4]] == ["exact", "exact", "estimated", "estimated"]
    assert {t.name for t in trials(preset, ("steps",))} == {"exact-seed0", "exact-seed1"}
    recipes = {t.name: study_recipe(preset, t) for t in wanted}
    exact = recipes["exact-seed0"]
    assert exact.data.pose_noise is None
    assert recipes["exact-seed1"].seed == 1
    small = recipes["batch4-seed0"].stages["camera"]
    assert (small.train.batch_size, small.train.steps) == (4, exact.stages["camera"].train.steps)
    noisy = recipes["estimated-seed1"]
    assert (noisy.data.pose_noise.rotation, noisy.data.pose_noise.seed) == (LEVELS["estimated"].rotation, 1)
    assert noisy.stages == recipes["exact-seed1"].stages
    with pytest.raises(WorldlineError, match="did you mean 'poses'"):
        trials(preset, ("pose",))


def test_an_unknown_preset_or_study_is_named(capsys):
    from worldline.cli import main

    for call, said in (
        (["ablate", "all", "--preset", "quik"], "did you mean 'quick'"),
        (["ablate", "bach"], "'batch'"),
    ):
        assert main(call) != 0
        assert said in capsys.readouterr().err.replace("\n", " ")
