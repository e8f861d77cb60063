"""Which weights a stage table plays, in how many steps, on how long a clip."""

from __future__ import annotations

import json

import pytest

from worldline.recipes.assets import bundled
from worldline.recipes.contestants import Asked, contestants, default_stages, parsed, setting, teacher_of
from worldline.recipes.load import load_recipe
from worldline.recipes.workspace import Workspace
from worldline.schema import WorldlineError


@pytest.fixture
def ws(tmp_path) -> Workspace:
    """A run of recipe `nano` whose camera_long, ar_long and dmd are there, and its clips' description."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = tmp_path / "data"
    data.mkdir()
    info = {"move_scale": 0.005, "walk_units_per_frame": 4.0, "config": {"frames": 65, "height": 64, "width": 96}}
    (data / "dataset.json").write_text(json.dumps(info))
    pq.write_table(pa.table({"split": ["train"]}), data / "manifest.parquet")
    run = tmp_path / "run"
    for stage in ("camera", "camera_long", "ar_long", "dmd"):
        (run / stage).mkdir(parents=True)
        (run / stage / "model").symlink_to(bundled("world"))
    (run / "world").symlink_to(bundled("world"))
    (run / "base").mkdir()
    (run / "base" / "model").symlink_to(bundled("base"))
    return Workspace(load_recipe("nano", [f"data.path={data}", "codec.path=bundled"]), run)


def test_names_are_stages_with_or_without_steps():
    assert parsed("base, ar,dmd@2,") == [Asked("base"), Asked("ar"), Asked("dmd", 2)]
    for wrong in ("dmd@two", "@2"):
        with pytest.raises(WorldlineError, match="dmd@2"):
            parsed(wrong)


def test_every_stage_that_is_there_is_played_as_its_recipe_says(ws):
    asked = default_stages(ws)
    assert [a.stage for a in asked] == ["base", "camera", "camera_long", "ar_long", "dmd", "world"]
    assert teacher_of(ws, asked) == "ar_long"
    rows = {c.label: c for c in contestants(ws, asked, (4, 2))}
    assert list(rows) == ["base", "camera", "camera_long", "ar_long", "dmd@4", "dmd@2", "world"]
    # Clips of 9 latents and of 17; chunk by chunk where causal.
    assert {label: c.clip for label, c in rows.items() if c.clip} == {"base": 32, "camera": 32, "camera_long": 64}
    assert {c.rows for c in rows.values()} == {4}
    assert rows["ar_long"].about == "50 steps, guidance 2"
    assert len({rows[label].weights for label in ("ar_long", "dmd@4", "dmd@2")}) == 3  # one file, three samplings
    assert setting(ws).walk_units_per_frame == 4.0
    whole, few = rows["camera_long"].player(), rows["dmd@2"].player()
    assert (whole.whole_clip, whole.plan.visibility.bidirectional, whole.plan.guidance) == (17, True, 2.0)
    assert (few.whole_clip, len(few.plan.sigmas), few.plan.guidance) == (None, 2, 1.0)
    assert few.plan.sigmas == rows["world"].player().plan.sigmas


def test_what_cannot_be_played_is_refused(ws):
    for names, match in (("no", "stage 'no'"), ("cd", "no weights"), ("camera@2", "only causal"), ("dmd@3", "one of")):
        with pytest.raises(WorldlineError, match=match):
            contestants(ws, parsed(names), (4,))
    with pytest.raises(WorldlineError, match="no causal multi-step stage"):
        teacher_of(ws, parsed("base,dmd@2,ar_long@2"))
    assert [c.label for c in contestants(ws, parsed("ar_long@2"), (4,))] == ["ar_long@2"]
