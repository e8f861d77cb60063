"""The pipeline with real stages made tiny: chain, skip, change, resume, fork, typed failures."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from worldline.methods.finetune import Finetune
from worldline.models.registry import load_model, weights_hash
from worldline.recipes.bundle import bundle
from worldline.recipes.graph import Interrupted
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import run
from worldline.schema import Controls, WorldlineError
from worldline.stream.engine import Engine
from worldline.stream.world import WorldConfig, read_starts

STAGES = ["camera", "ar", "ode", "cd", "dmd"]


class Witness:
    """Collects which stages ran and which were skipped."""

    def __init__(self):
        self.ran, self.kept = [], []

    def skipped(self, node, record):
        self.kept.append(node.name)

    def started(self, node, resumed):
        self.ran.append(node.name + (" resumed" if resumed else ""))

    def finished(self, node, record):
        assert record.status == "done"


def go(path, run_dir, *overrides, **kwargs):
    witness = Witness()
    result = run(load_recipe(path, overrides), run_dir, progress=witness, **{"until": "world", **kwargs})
    return witness, result


def test_the_whole_chain_makes_a_world_and_runs_once(smallest, tmp_path):
    witness, result = go(smallest, tmp_path / "run")
    assert witness.ran == ["codec", "encode", "base", *STAGES, "world"]

    config = WorldConfig.read(result.world)
    assert (config.height, config.width) == (32, 32)
    assert config.sigmas[0] == 1.0
    assert len(config.sigmas) == 2
    assert len(read_starts(result.world / config.starts, 32, 32)) == 2
    assert load_model(result.world / config.codec).spatial == 8
    assert weights_hash(result.world) == weights_hash(tmp_path / "run" / "dmd" / "model")
    card = json.loads((result.world / "card.json").read_text())
    assert card["licence"] == "Apache-2.0"
    assert card["stage"] == "dmd"

    assets = bundle(tmp_path / "run", tmp_path / "assets", codec=tmp_path / "run/codec/model")
    session = Engine.load(assets / "world", threads=1, warm=False).session(seed=1)
    assert session.step(Controls.still(4)).shape == (4, 32, 32, 3)
    assert str(tmp_path) not in (assets / "world/card.json").read_text(), "where parts lay is nobody's business"

    mixed = bundle(tmp_path / "run", tmp_path / "mixed", average=("ar", 0.25))
    key = "patch_embedding.weight"
    world, ar, found = (
        load_model(p).state_dict()[key] for p in (result.world, tmp_path / "run/ar/model", mixed / "world")
    )
    torch.testing.assert_close(found, 0.75 * world + 0.25 * ar, atol=1e-2, rtol=1e-2)
    assert not torch.equal(found, load_model(assets / "world").state_dict()[key])
    assert json.loads((mixed / "world/card.json").read_text())["average"] == {"ar": 0.25}

    # Every stage moved the weights it started from.
    digests = [weights_hash(tmp_path / "run" / stage / "model") for stage in ["base", *STAGES]]
    assert len(set(digests)) == len(digests)

    assert go(smallest, tmp_path / "run")[0].ran == []
    witness, _ = go(smallest, tmp_path / "run", "stages.cd.train.lr=1e-5")
    assert witness.ran == ["cd", "dmd", "world"]
    assert go(smallest, tmp_path / "run", "stages.cd.train.lr=1e-5", "stages.cd.train.log_every=1")[0].ran == []
    witness, _ = go(smallest, tmp_path / "fork", "stages.dmd.train.lr=1e-5", fork=tmp_path / "run")
    assert witness.ran == ["dmd", "world"], "the fork takes over equal stages, those on the other run's shelf too"
    assert go(smallest, tmp_path / "run", "stages.cd.train.lr=1e-5")[0].ran == [], "and leaves that run as it was"


def test_an_interrupted_stage_resumes_to_the_same_weights(smallest, tmp_path, monkeypatch):
    go(smallest, tmp_path / "straight", until="camera")

    def stop_after_two(self, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Finetune, "after_step", stop_after_two)
        with pytest.raises(Interrupted, match=r"go on with: worldline run .*broken"):
            go(smallest, tmp_path / "broken", "base.path=" + str(tmp_path / "straight/base/model"), until="camera")
    assert json.loads((tmp_path / "broken/camera/stage.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "broken/camera/model").exists()
    witness, _ = go(tmp_path / "broken/recipe.yaml", tmp_path / "broken", until="camera")
    assert witness.ran == ["camera resumed"]
    assert weights_hash(tmp_path / "broken/camera/model") == weights_hash(tmp_path / "straight/camera/model")


def test_codec_and_base_go_on_from_other_weights(smallest, tmp_path):
    go(smallest, tmp_path / "first", until="base")
    inits = [f"{part}.init={tmp_path / 'first' / part / 'model'}" for part in ("codec", "base")]
    frozen = ["codec.train.lr=0", "base.train.lr=0", "codec.train.weight_decay=0", "base.train.weight_decay=0"]
    witness, _ = go(smallest, tmp_path / "second", *inits, *frozen, until="base")
    assert witness.ran == ["codec", "encode", "base"]
    for part in ("codec", "base"):
        first, second = (load_model(tmp_path / run / part / "model").state_dict() for run in ("first", "second"))
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, atol=1e-6, rtol=1e-5, msg=f"{part} {key}")
    assert go(smallest, tmp_path / "second", *inits, *frozen, until="base")[0].ran == []
    with pytest.raises(WorldlineError, match="holds a NanoVAE; expected a video model"):
        go(smallest, tmp_path / "third", "base.init=" + str(tmp_path / "first/codec/model"), until="base")


def test_stages_start_from_another_runs_models_and_train_on_shorter_clips(smallest, tmp_path):
    go(smallest, tmp_path / "first", until="camera")
    model = tmp_path / "first" / "camera" / "model"
    frozen = ("stages.camera.train.steps=1", "stages.camera.train.lr=0")
    shorter = [f"stages.camera.init={model}", "stages.camera.latents=2", *frozen]
    witness, _ = go(smallest, tmp_path / "second", *shorter, until="camera")
    assert witness.ran == ["codec", "encode", "base", "camera"]
    ours, theirs = (load_model(tmp_path / run / "camera" / "model").state_dict() for run in ("first", "second"))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)

    witness, _ = go(smallest, tmp_path / "second", *shorter, "stages.camera.latents=3", until="camera")
    assert witness.ran == ["camera"]
    with pytest.raises(WorldlineError, match="9 latents asked of clips of 4"):
        go(smallest, tmp_path / "second", *shorter, "stages.camera.latents=9", until="camera")
    with pytest.raises(WorldlineError, match="no/such is no model directory"):
        go(smallest, tmp_path / "second", "stages.camera.init=no/such", until="camera")


def test_clips_that_do_not_chunk_are_refused_with_the_mend(smallest, tmp_path):
    with pytest.raises(WorldlineError, match=r"clips of 4 latents do not divide .* chunks of 2; .* 3 latents"):
        go(smallest, tmp_path / "run", "rollout.chunk=2", until="camera")


def test_a_missing_dataset_fails_before_anything_runs(smallest, tmp_path):
    with pytest.raises(WorldlineError, match="is no finished dataset"):
        go(smallest, tmp_path / "run", "data.path=nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_smoke_recipe_from_rendering_to_report(tmp_path, monkeypatch):
    from worldline.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--recipe", "nano-smoke", "--no-serve", "--json", "figures.json"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"seconds_total", "first_frame_ms_bidirectional", "first_frame_ms_ar_multistep"} <= set(figures)
    assert {"first_frame_ms_ar_fewstep", "first_frame_speedup"} <= set(figures)
    assert {f"run_{k}" for k in ("psnr_1s", "psnr_1s_frozen", "psnr_1s_wrong_actions")} <= set(figures)
    report = (tmp_path / "runs/nano-smoke/report/index.html").read_text()
    assert all(stage in report for stage in STAGES)
