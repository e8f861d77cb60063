"""Stages are watched: samples change no weights, and what is found reaches the reader of the report."""

from __future__ import annotations

import json

from worldline.models.registry import weights_hash
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import run
from worldline.recipes.results import report
from worldline.recipes.workspace import Workspace
from worldline.train.ema import EMA
from worldline.train.log import read_notes

OFTEN = ("health.every=1", "health.sample_every=2", "health.budget=1.0")


def test_samples_are_played_and_change_nothing(smallest, tmp_path):
    run(load_recipe(smallest, OFTEN), tmp_path / "watched", until="ar")
    run(load_recipe(smallest, ["health.samples=false"]), tmp_path / "plain", until="camera")
    for stage, steps in (("base", [2]), ("camera", [2, 4]), ("ar", [2])):
        train = tmp_path / "watched" / stage / "train"
        assert sorted(p.name for p in (train / "samples").iterdir()) == [f"step-{n:08d}.png" for n in steps]
        assert any("samples/psnr" in line for line in read_notes(train))
    for stage in ("base", "camera"):
        assert weights_hash(tmp_path / "watched" / stage / "model") == weights_hash(
            tmp_path / "plain" / stage / "model"
        )
    assert not (tmp_path / "plain" / "camera" / "train" / "samples").exists()


def test_findings_are_told_once_and_reported(smallest, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EMA, "update", lambda self, module: None)
    recipe = load_recipe(smallest, ["health.every=1", "health.samples=false", "evaluate.episodes=0"])
    run(recipe, tmp_path / "run", until="camera")
    assert capsys.readouterr().out.replace("\n", " ").count("frozen EMA (flow, step") == 1
    found = json.loads((tmp_path / "run" / "camera" / "stage.json").read_text())
    assert found["status"] == "done"
    ws = Workspace(recipe, tmp_path / "run")
    (tmp_path / "page").mkdir()
    report(ws, tmp_path / "page")
    stages = {row["stage"]: row for row in json.loads((tmp_path / "page" / "report.json").read_text())["stages"]}
    assert [f["kind"] for f in stages["camera"]["health"]] == ["frozen EMA"]
    page = (tmp_path / "page" / "index.html").read_text()
    assert "frozen EMA" in page
    assert "keep averages in fp32" in page
