"""Stages of a conversion on the same episodes: adapters, openings, what is kept of the teacher, the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import randomise
from tests.evaluate.panorama import K
from worldline.evaluate import suites
from worldline.evaluate.adapter import drive
from worldline.evaluate.figures import BY_NAME
from worldline.evaluate.player import Player, nominal_path
from worldline.evaluate.runner import Plan, shown
from worldline.evaluate.score import Score
from worldline.evaluate.stage_page import stage_markdown, write_stage_page
from worldline.evaluate.stage_table import BARRED, kept, stage_results, verdict
from worldline.evaluate.stages import Contestant, Opening, PlayerAdapter, Setting, measure_stages, opening_frames, part
from worldline.evaluate.suites import Case, Entry, cases
from worldline.evaluate.truth import Truth
from worldline.functional.masks import Visibility
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.models.text import HashTextEncoder
from worldline.rollout.plan import RolloutPlan
from worldline.schema import CameraPath, Controls, WorldlineError

CHUNKS = Visibility(chunk=1, window=3, prefix=1)
FEW = RolloutPlan(CHUNKS, (1.0, 0.8))
WHOLE = RolloutPlan.multi_step(Visibility(bidirectional=True, prefix=1), steps=2, guidance=2.0)
SETTING = Setting(32, 48, 4.0)


@pytest.fixture
def make(tiny_wan):
    sizes = NanoVAEConfig(latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), blocks=1)
    codec = randomise(NanoVAE(sizes), seed=1, std=0.2).eval()

    def contestant(label: str, plan: RolloutPlan = FEW, clip: int = 0) -> Contestant:
        whole = clip // 4 + 1 if clip else None
        player = Player(tiny_wan("fused"), codec, HashTextEncoder(8, 6), plan, 0.02, whole, bf16=False)
        return Contestant(
            label=label,
            stage=label.partition("@")[0],
            about="two steps",
            weights=label,
            player=lambda: player,
            clip=clip,
        )

    return contestant


def truth(frames: int) -> Truth:
    rng = np.random.default_rng(0)
    look = np.zeros((frames, 3))
    look[:, 0] = 2.0
    controls = Controls(np.zeros((frames, 3)), look)
    case = Case("S2-yaw-000", "S2", "yaw", "ood-map", 990_000, None, controls)
    shown_frames = rng.integers(0, 256, (frames + 1, 32, 48, 3), dtype=np.uint8)
    path = CameraPath(np.tile(np.eye(4), (frames + 1, 1, 1)), K)
    return Truth(case, shown_frames, path, shown_frames[0], "a hall", {})


def played(contestant: Contestant, t: Truth) -> np.ndarray:
    model = PlayerAdapter(contestant, SETTING)
    model.expect(t)
    return drive(model, t.start, t.caption, t.case.controls, 5).frames


@pytest.mark.parametrize(("plan", "clip"), [(FEW, 0), (WHOLE, 16)])
def test_an_adapter_shows_what_its_player_plays_under_the_cameras_that_keys_ask_for(make, plan, clip):
    t = truth(14)
    contestant = make("x", plan, clip)
    padded = Controls.concat([t.case.controls, Controls.still(2)])
    wanted = contestant.player().play(t.start[None], [nominal_path(padded, K, 4.0)], ["a hall"], 5)[0]
    assert np.array_equal(played(contestant, t), wanted[:15])


def test_what_an_adapter_cannot_play_is_refused(make):
    model = PlayerAdapter(make("x", WHOLE, 16), SETTING)
    t = truth(20)
    with pytest.raises(WorldlineError, match="expect"):
        model.reset(t.start, "", 0)
    model.expect(t)
    with pytest.raises(WorldlineError, match="clips of 16 frames, the episode has 20"):
        model.reset(t.start, "", 0)
    model = PlayerAdapter(make("x"), SETTING)
    model.expect(t)
    model.reset(t.start, "", 0)
    with pytest.raises(WorldlineError, match="other controls"):
        model.step(Controls.still(4))
    with pytest.raises(WorldlineError, match="at least one causal"):
        measure_stages([make("x", WHOLE, 16)], SETTING, Plan(preset="smoke", out=Path("no"), truth=Path("no")))


def test_a_case_is_cut_with_the_marks_that_lie_within():
    (pan,) = cases([Entry("S3", "pan-30", 1)])
    short = pan.cut(20)
    assert len(short.controls) == 20
    assert set(pan.marks) == {"far", "back"}
    assert set(short.marks) == {"far"}
    assert short.fingerprint() != pan.fingerprint()
    assert pan.cut(500) is pan


def test_a_plan_plays_so_many_episodes_of_a_script_and_so_many_frames(tmp_path):
    plan = Plan(preset="stages", episodes=2, frames=32, out=tmp_path, truth=tmp_path)
    made = plan.cases()
    assert [c.id for c in made] == [f"S2-{v}-{i:03d}" for v in ("yaw", "yaw+forward") for i in (0, 1)] + [
        "S7-roam-000",
        "S7-roam-001",
    ]
    assert {len(c.controls) for c in made} == {32}


def rows(gain: float, tolerant: float, noise: float = 0.0) -> dict[str, dict[str, Score]]:
    """Four episodes of turning and four walks of a world with that gain and tolerant PSNR."""
    rng = np.random.default_rng(1)
    made: dict[str, dict[str, Score]] = {"model": {}, "replay": {}}
    for i in range(4):
        true = rng.choice((-2.0, 0.0, 2.0), 64)
        for name, g in (("model", gain), ("replay", 1.0)):
            yaw = g * true + (noise * rng.normal(size=64) if name == "model" else 0)
            made[name][f"S2-yaw-{i}"] = Score(f"S2-yaw-{i}", "S2", "yaw", "ood-map", {}, {"yaw": yaw, "true_yaw": true})
            series = {"tolerant": np.full(65, tolerant + i if name == "model" else 60.0), "yaw": yaw}
            made[name][f"S7-roam-{i}"] = Score(f"S7-roam-{i}", "S7", "roam", "ood-map", {}, series)
    return made


def test_what_is_kept_is_the_ratio_on_the_same_episodes():
    teacher, student = rows(0.8, 25.0), rows(0.72, 24.0, noise=0.3)
    found = kept(BY_NAME["yaw_gain"], student, teacher)
    assert found.value == pytest.approx(0.9, abs=0.05)
    assert found.low <= found.value <= found.high
    assert found.n == 4
    assert kept(BY_NAME["tolerant_ood_map"], student, teacher).value == pytest.approx(25.5 / 26.5)
    assert kept(BY_NAME["yaw_gain"], teacher, teacher).value == 1
    # Both are drawn alike, so a world compared with itself has no interval.
    assert kept(BY_NAME["yaw_gain"], teacher, teacher).low == 1
    del student["model"]["S2-yaw-0"]
    assert kept(BY_NAME["yaw_gain"], student, teacher).n == 3
    assert kept(BY_NAME["loop_gain"], student, teacher) is None


def test_the_verdict_says_by_how_much_a_stage_falls_short():
    def row(label, corr, shares=None):
        share = {n: {"value": v, "low": v - 0.1, "high": v + 0.1} for n, v in zip(BARRED, shares or (), strict=False)}
        return {"label": label, "opening": {"yaw_corr_grouped": {"value": corr}}, "kept": share}

    said = verdict(
        [row("base", 0.1), row("ar", 0.9), row("dmd@2", 0.9, (0.95, 0.8)), row("dmd@4", 0.9, (0.95, 0.93))], "ar"
    )
    assert len(said) == 3
    assert said[0].startswith("Control grows from base to ar")
    assert "95 % (85 to 105) of its tolerant PSNR and 80 % (70 to 90) of its yaw gain" in said[1]
    assert said[1].endswith("short of 90 %: yaw gain by 10 points.")
    assert said[2].endswith("90 % or more.")


@pytest.mark.slow
def test_the_table_of_a_tiny_line_from_rollouts_to_the_page(make, tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    entries = [Entry("S2", "yaw", 1, frames=24), Entry("S7", "roam", 2, frames=28)]
    monkeypatch.setitem(suites.PRESETS, "tiny", entries)
    plan = Plan(preset="tiny", out=tmp_path / "run", truth=tmp_path / "truth", workers=0)
    setting = Setting(32, 48, 4.0)
    line = [make("base", WHOLE, 16), make("ar"), make("dmd@2")]
    assert opening_frames(line) == 16
    half = replace(plan, shard=(0, 2))
    assert measure_stages(line, setting, half) is None
    measured = measure_stages(line, setting, plan)
    base, ar, _ = measured
    assert base.whole is None
    assert {len(s.series["yaw"]) for s in base.opening["model"].values()} == {16}
    assert {len(s.series["yaw"]) for s in ar.whole["model"].values()} == {24, 28}
    for case in plan.cases():  # an opening is what was played, cut
        whole, cut = shown(part(plan, "ar").out, case), shown(part(plan, "ar", 16).out, case.cut(16))
        assert np.array_equal(whole[:17], cut)
        assert not np.array_equal(cut, shown(part(plan, "base", 16).out, case.cut(16)))
    assert min(s.series["psnr"][1:].mean() for s in ar.whole["codec"].values()) > 5

    def never() -> Player:
        raise AssertionError("played again")

    again = measure_stages([replace(c, player=never) for c in line], setting, plan)
    results = stage_results(again, plan, "ar", {"run": "tiny"})
    assert results == json.loads(json.dumps(results, allow_nan=False))
    assert [r["label"] for r in results["stages"]] == ["base", "ar", "dmd@2"]
    assert results["stages"][2]["kept"]["tolerant_ood_map"]["value"] == 1  # the same weights under another name
    assert results["stages"][0]["whole"] == {}
    page = write_stage_page(plan, results, again).read_text()
    assert "dmd@2" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    told = stage_markdown(results)
    assert told.count("| dmd@2 |") == 3
    with pytest.raises(WorldlineError, match="teacher 'base'"):
        stage_results(again, plan, "base", {})


def test_an_opening_is_the_start_of_what_was_played(tmp_path, monkeypatch):
    from worldline.evaluate.adapter import ModelInfo
    from worldline.evaluate.runner import clip_path
    from worldline.evaluate.store import write_clip

    monkeypatch.setitem(suites.PRESETS, "tiny", [Entry("S2", "yaw", 1, frames=24)])
    plan = Plan(preset="tiny", out=tmp_path, truth=tmp_path)
    (case,) = plan.cases()
    frames = np.random.default_rng(0).integers(0, 256, (25, 32, 48, 3), dtype=np.uint8)
    write_clip(clip_path(plan.out, case), frames)
    model = Opening(ModelInfo(name="x", fps=16, height=32, width=48, frames_per_step=12), plan)
    model.expect(replace(truth(16), case=case.cut(16)))
    found = drive(model, frames[0], "", case.cut(16).controls, 0)
    assert np.array_equal(found.frames, frames[:17])
