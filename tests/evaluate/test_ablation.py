"""Studies on measurements with planted effects: the verdict follows the numbers, whichever way they go."""

from __future__ import annotations

import json

import numpy as np
import pytest

from worldline.evaluate.ablation import Run, study
from worldline.evaluate.ablation_page import page
from worldline.train.validation import Measurement

LEVELS = ("exact", "small", "estimated")
SPIN, CLIPS, F = 6, 12, 16


def measured(step: int, gain: float, use: float, seed: int = 0) -> Measurement:
    """A model that shows `gain` of every turn, through noise, and whose error grows by `use` percent under other cameras."""
    from worldline.evaluate.validation import Validation

    rng, commands = np.random.default_rng([seed, step]), np.random.default_rng(9)
    asked = [2.0 * commands.integers(-1, 2, F).astype(float) for _ in range(SPIN)]
    shown = [gain * u + rng.normal(0, 0.5, F) for u in asked]
    growth = [rng.normal(0, 0.001, F) for _ in asked]
    found = Validation(asked, shown, growth, 20 + 4 * gain + rng.normal(0, 0.2, SPIN))
    own = rng.uniform(0.4, 0.6, CLIPS)
    other = own * (1 + use / 100 + rng.normal(0, 0.01, CLIPS))
    figures = found.figures() | {"camera_use": 100 * (other.sum() / own.sum() - 1)}
    return Measurement(step, figures, found.to_data() | {"own": own.tolist(), "other": other.tolist()}, 1.0)


START = measured(0, 0.0, 0.0)


def run(name: str, level: str, batch: int, seed: int, curve: dict[int, tuple[float, float]], *studies: str) -> Run:
    found = [measured(step, gain, use, seed + 10 * batch) for step, (gain, use) in curve.items()]
    return Run(name, level, batch, seed, studies, found, 10.0, [(1, 0.6), (9, 0.5)])


def of_poses(exact: float, estimated: float) -> list[Run]:
    runs = [run(f"e{s}", "exact", 16, s, {9: (exact, 10 * exact)}, "poses") for s in (0, 1)]
    return runs + [run(f"n{s}", "estimated", 16, 2 + s, {9: (estimated, 10 * estimated)}, "poses") for s in (0, 1)]


@pytest.mark.parametrize(
    ("exact", "estimated", "verdict", "word"),
    [
        (0.9, 0.1, "agrees", "Exact cameras control more"),
        (0.1, 0.9, "disagrees", "Estimated cameras control more"),
        (0.5, 0.5, "not told", "cannot be told apart"),
    ],
)
def test_the_verdict_on_cameras_follows_the_numbers(exact, estimated, verdict, word):
    found = study("poses", of_poses(exact, estimated), LEVELS, START)
    assert (found["verdict"], word in found["statement"]) == (verdict, True), found["statement"]
    assert [p["label"] for p in found["points"]] == ["exact", "estimated"], "small is not run yet"
    assert f"beyond chance: {'estimated' if verdict == 'agrees' else 'none'}." in found["statement"]
    corr = found["points"][0]["figures"]["yaw_corr"]
    assert corr["low"] <= corr["value"] <= corr["high"]
    assert len(corr["by_seed"]) == 2


def test_a_study_without_its_runs_says_so():
    found = study("poses", of_poses(0.9, 0.1)[:2], LEVELS, START)
    assert (found["verdict"], found["statement"]) == ("missing", "The runs that would tell are not finished.")
    for name in ("steps", "batch"):
        assert study(name, [], LEVELS, START)["verdict"] == "missing"


def test_steps_tell_when_control_appears():
    curve = {10: (0.0, 0.0), 20: (0.3, 4.0), 30: (0.8, 9.0)}
    grows = study("steps", [run(f"s{s}", "exact", 16, s, curve, "steps") for s in (0, 1)], LEVELS, START)
    assert grows["verdict"] == "agrees"
    assert [p["value"] for p in grows["points"]] == [0, 10, 20, 30]
    assert grows["appears"] == {"yaw_corr": 20, "camera_use": 20}
    still = {10: (0.4, 5.0), 20: (0.0, 0.0)}
    lost = study("steps", [run(f"s{s}", "exact", 16, s, still, "steps") for s in (0, 1)], LEVELS, START)
    assert lost["appears"] == {"yaw_corr": None, "camera_use": None}, "what goes away again has not appeared"


def test_small_batches_are_compared_at_equal_steps_and_at_equal_clips():
    curve = {4: (0.2, 2.0), 8: (0.5, 5.0), 16: (0.9, 9.0)}
    runs = [run(f"b16-{s}", "exact", 16, s, curve, "batch") for s in (0, 1)]
    for batch, gain in ((1, 0.05), (4, 0.2), (8, 0.5)):
        runs += [run(f"b{batch}-{s}", "exact", batch, s, {16: (gain, 10 * gain)}, "batch") for s in (0, 1)]
    found = study("batch", runs, LEVELS, START)
    assert found["verdict"] == "agrees"
    assert "behind 16 beyond chance: 1, 4, 8" in found["statement"]
    assert [(p["value"], p["label"]) for p in found["same_clips"]] == [
        (4.0, "batch 16 after 4 steps"), (8.0, "batch 16 after 8 steps"),
    ]  # fmt: skip # batch 1 has seen as many clips as batch 16 after one step, which was not measured
    assert "(compared: 4, 8), sizes that are ahead of 16 beyond chance: none." in found["statement"], "planted equal"
    quicker = [r if r.batch != 8 else run(r.name, "exact", 8, r.seed, {16: (0.8, 8)}, "batch") for r in runs]
    assert study("batch", quicker, LEVELS, START)["statement"].endswith("ahead of 16 beyond chance: 8.")
    other_way = [run(r.name, "exact", 17 - r.batch, r.seed, {16: (r.batch / 16, r.batch)}, "batch") for r in runs]
    assert study("batch", other_way, LEVELS, START)["verdict"] == "disagrees"


def test_the_page_says_what_the_numbers_say():
    runs = of_poses(0.9, 0.1)
    level = {"rotation": 1.0, "translation": 0.4, "scale": 0.5}
    sizes = {"rotation": 1.0, "translation": 0.1, "end": 3.0}
    results = {
        "preset": {"steps": 9, "latents": 5, "recipe": "nano-demo", "episodes": SPIN, "denoising": 8},
        "stamp": {"machine": "a machine", "torch": "2", "date": "today", "worldline": "0", "git": "abc"},
        "training": {"optimizer": "muon", "lr": 1e-3, "schedule": "constant", "ema_decay": 0.99},
        "levels": dict.fromkeys(LEVELS, level),
        "reference": {
            "start": {"figures": START.figures}, "codec": {"figures": measured(0, 1.0, 0.0).figures},
            "motion": sizes, "errors": dict.fromkeys(LEVELS, sizes), "clips": 416,
        },
        "wanted": ["a"] * 6,
        "runs": [r.to_data() for r in runs],
        "studies": {n: study(n, runs, LEVELS, START) for n in ("poses", "batch")},
    }  # fmt: skip
    html = page(json.loads(json.dumps(results)))
    assert "4 of 6 finished" in html
    assert results["studies"]["poses"]["statement"] in html
    assert "Goes the way minWM reports." in html
    assert "Not run to its end." in html
    assert html.count("<svg") == 5, "every figure of the one study that has points"
    assert "http" not in html.replace("http-equiv", ""), "offline"
