"""The whole way on two short episodes: render, play, measure, resume, publish, compare. The model is the simulator, or the
simulator with a fault, or a tiny world of the real classes."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.worlds import Faulty, tiny_plan
from worldline.evaluate import runner
from worldline.evaluate.adapter import ModelInfo, ReplayAdapter, drive
from worldline.evaluate.card import markdown
from worldline.evaluate.clips import ClipsAdapter, action_log, controls_of_log, export_inputs, in_codecs, open_domain
from worldline.evaluate.compare import compare
from worldline.evaluate.publish import publish, table
from worldline.evaluate.results import SCHEMA, read_results
from worldline.evaluate.runner import Plan, evaluate, shown
from worldline.evaluate.truth import truth_of
from worldline.schema import Controls, ShapeError, WorldlineError

pytest.importorskip("vizdoom")


@pytest.fixture(scope="module")
def truths(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("truth")


@pytest.fixture
def plan(tmp_path, truths, monkeypatch) -> Plan:
    return tiny_plan(monkeypatch, tmp_path / "run", truths)


def test_the_oracle_scores_at_the_ceiling(plan):
    oracle = ReplayAdapter(frames_per_step=12)
    rows = evaluate(oracle, plan)
    oracle.close()
    page, shown_table = publish(plan, rows, {"command": "test"})
    results = read_results(plan.out)
    model, replay = results["figures"]["model"], results["figures"]["replay"]
    for name in ("psnr_1s", "tolerant_1s", "yaw_gain", "yaw_corr", "yaw_lag", "loop_gain", "sharpness"):
        assert model[name]["status"] == "ok", (name, model[name])
        assert model[name]["value"] == replay[name]["value"]
    assert (model["yaw_lag"]["value"], model["psnr_1s"]["value"]) == (0, 60)
    assert shown_table.row_count > 8
    assert page.is_file()


def test_a_late_model_is_told_apart_and_compared(plan, tmp_path, truths, monkeypatch):
    rows = evaluate(Faulty(delay=4), plan)
    publish(plan, rows, {})
    found = read_results(plan.out)["figures"]["model"]
    assert found["yaw_lag"]["value"] == 4
    assert found["tolerant_1s"]["value"] > found["psnr_1s"]["value"] + 10
    other = tiny_plan(monkeypatch, tmp_path / "other", truths)
    publish(other, evaluate(Faulty(), other), {})
    lag = next(c for c in compare(plan.out, other.out) if c.name == "yaw_lag")
    assert (lag.a, lag.b, lag.difference.value) == (4, 0, -4)
    assert lag.better == ""  # one episode tells nothing


def test_a_run_resumes_and_keeps_what_it_has(plan, monkeypatch):
    model = Faulty()
    evaluate(model, plan)
    played = model.resets
    first = {p: p.read_bytes() for p in plan.out.rglob("*.npz")}
    evaluate(model, plan)
    assert model.resets == played
    assert {p: p.read_bytes() for p in plan.out.rglob("*.npz")} == first
    with pytest.raises(WorldlineError, match="choose another --out"):
        evaluate(Faulty(delay=2), plan)


def test_shards_add_up(plan, monkeypatch):
    model = Faulty()
    shard = Plan(preset=plan.preset, out=plan.out, truth=plan.truth, shard=(0, 2), workers=0)
    assert evaluate(model, shard) is None
    rest = Plan(preset=plan.preset, out=plan.out, truth=plan.truth, shard=(1, 2), workers=0)
    rows = evaluate(model, rest)
    assert rows is not None
    assert len(rows["model"]) == len(plan.cases())
    with pytest.raises(WorldlineError, match="2/2"):
        Plan(out=plan.out, truth=plan.truth, shard=(2, 2))


def test_page_card_and_table_hold_every_row_and_ask_no_network(plan):
    publish(plan, evaluate(Faulty(delay=4), plan), {"command": "worldline <evaluate> & co"})
    page = (plan.out / "report.html").read_text()
    seen: list[tuple[str, dict]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append((tag, dict(attrs)))

    Reader().feed(page)
    assert not [a for _, a in seen for k, v in a.items() if k in ("src", "href") and not str(v).startswith("data:")]
    assert sum(t == "img" for t, _ in seen) == len(plan.cases())
    assert "worldline &lt;evaluate&gt; &amp; co" in page
    results = read_results(plan.out)
    assert results["schema"] == SCHEMA
    assert set(results["figures"]) == {"model", "replay", "delayed", "half-gain", "other-actions", "frozen"}
    skipped = [f for f in results["figures"]["model"].values() if f["status"] != "ok"]
    assert skipped
    assert all(f["value"] is None and f["reason"] for f in skipped)
    card = markdown(results)
    assert card.startswith("---\nmodel-index:")
    assert "Content filter: none" in card
    with (plan.out / "per_episode.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["row"] for line in lines} == set(results["figures"])
    assert table(results).row_count == len(
        [
            n
            for n in results["units"]
            if any(n in f and f[n]["status"] == "ok" for f in results["figures"].values()) and n in _headline()
        ]
    )


def _headline() -> tuple[str, ...]:
    from worldline.evaluate.figures import HEADLINE

    return HEADLINE


def test_results_of_two_protocols_are_not_compared(plan, tmp_path):
    publish(plan, evaluate(Faulty(), plan), {})
    other = tmp_path / "other"
    other.mkdir()
    results = json.loads((plan.out / "results.json").read_text())
    (other / "results.json").write_text(json.dumps({**results, "metric_version": 1}))
    with pytest.raises(WorldlineError, match="metric version 1"):
        compare(other, plan.out)
    with pytest.raises(WorldlineError, match="no results"):
        compare(tmp_path, plan.out)


def test_clips_made_elsewhere_score_as_the_model_that_made_them(plan, tmp_path, truths, monkeypatch):
    made = [truth_of(c, truths) for c in plan.cases()]
    folder = export_inputs(made, tmp_path / "inputs")
    for truth in made:
        np.save(folder / f"{truth.case.id}.npy", truth.frames)
    rows = evaluate(ClipsAdapter(folder), plan)
    assert all(s.series["psnr"].min() == 60 for s in rows["model"].values())
    assert all(
        "step_ms" not in s.series and "first_ms" not in s.values for s in rows["model"].values()
    )  # made elsewhere
    log = folder / f"{made[0].case.id}.json"
    said = json.loads(log.read_text())
    said["look"][3][0] += 1
    log.write_text(json.dumps(said))
    with pytest.raises(WorldlineError, match="other actions"):
        ClipsAdapter(folder).expect(made[0])
    np.save(folder / f"{made[1].case.id}.npy", made[1].frames[:-1])
    with pytest.raises(WorldlineError, match="nothing is cut to fit"):
        ClipsAdapter(folder).expect(made[1])


def test_open_domain_clips_need_no_truth(plan, tmp_path, truths):
    from worldline.evaluate.open_domain import figures

    truth = truth_of(plan.cases()[0], truths)
    np.savez(tmp_path / "walk.npz", frames=truth.frames)
    said = {**action_log(truth.case.controls, 2.0), "K": truth.cameras.K[0].tolist()}
    (tmp_path / "walk.json").write_text(json.dumps(said))
    found = figures(open_domain(tmp_path)[0])
    assert found["yaw_lag"] == 0
    assert found["yaw_gain"] == pytest.approx(1, abs=0.05)
    assert found["pitch_gain"] is None
    (tmp_path / "walk.json").unlink()
    with pytest.raises(WorldlineError, match="no action log"):
        open_domain(tmp_path)


def test_action_logs_come_back(plan):
    for case in plan.cases():
        log = json.loads(json.dumps(action_log(case.controls, 2.0)))
        again = controls_of_log(log)
        assert np.allclose(again.look, case.controls.look)
        assert np.allclose(again.move, case.controls.move)
        assert again.keys == case.controls.keys
    held = Controls.concat([c.controls[:16] for c in plan.cases()])
    by_class = controls_of_log({"worldplay": action_log(held, 2.0)["worldplay"]})
    assert action_log(by_class, 2.0)["worldplay"] == action_log(held, 2.0)["worldplay"]
    for name, rows in in_codecs(held, 2.0).items():  # as a model of that family would be driven
        again = controls_of_log({"codec": name, **rows})
        assert action_log(again, 2.0)["worldplay"] == action_log(held, 2.0)["worldplay"]
    assert set(in_codecs(held, 2.0)) >= {"worldplay", "matrix-game-2", "matrix-game-3", "yume-1.5"}
    with pytest.raises(WorldlineError, match="expected one of worldplay"):
        controls_of_log({"codec": "other", "classes": [0]})
    with pytest.raises(WorldlineError, match="no actions"):
        controls_of_log({"frames": 3})


def test_drive_fills_up_the_last_chunk_and_cuts_it_off_again(plan, truths):
    truth = truth_of(plan.cases()[0], truths)
    model = Faulty(frames_per_step=7)
    model.expect(truth)
    played = drive(model, truth.start, "", truth.case.controls, 0)
    assert np.array_equal(played.frames, truth.frames)
    assert len(played.step_ms) == -(-len(truth.case.controls) // 7)


def test_a_model_that_gives_other_frames_than_it_says_is_refused():
    class Wrong:
        def info(self) -> ModelInfo:
            return ModelInfo(name="wrong", fps=16, height=8, width=8, frames_per_step=4)

        def reset(self, image, prompt, seed):
            return np.zeros((8, 8, 3), np.uint8)

        def step(self, controls):
            return np.zeros((3, 8, 8, 3), np.uint8)

    with pytest.raises(ShapeError, match="expected \\(4, 8, 8, 3\\)"):
        drive(Wrong(), np.zeros((8, 8, 3), np.uint8), "", Controls.still(8), 0)


def test_another_frame_rate_is_refused(plan):
    class Fast(Faulty):
        def info(self) -> ModelInfo:
            return ModelInfo(name="fast", fps=24, height=64, width=96, frames_per_step=4)

    with pytest.raises(WorldlineError, match="24 frames a second"):
        evaluate(Fast(), plan)


def test_a_streamed_world_is_evaluated_through_its_engine(plan, tmp_path, monkeypatch):
    from tests.tiny_world import write_tiny_world
    from worldline.evaluate.adapter import EngineAdapter
    from worldline.stream.engine import Engine

    engine = Engine.load(write_tiny_world(tmp_path), threads=1, warm=False)
    rows = evaluate(EngineAdapter(engine, "tiny"), plan)
    assert set(rows) == {"model", "codec", *runner.SHARED}
    case = plan.cases()[0]
    clip = shown(plan.out, case)
    assert clip.shape == (len(case.controls) + 1, 32, 48, 3)
    session = engine.session(
        truth_of(case, plan.truth, 32, 48).start, truth_of(case, plan.truth, 32, 48).caption, case.seed
    )
    assert np.array_equal(clip[1:5], session.step(case.controls[:4]))
    # A random world follows nobody.
    assert (
        abs(np.corrcoef(rows["model"][case.id].series["yaw"], rows["replay"][case.id].series["true_yaw"])[0, 1]) < 0.5
    )
