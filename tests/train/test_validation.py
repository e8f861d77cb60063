"""A run that is measured learns what one that is not learns; the best weights are kept, through a crash and a resume."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.train.test_loop import Numbers, Toy, config, everything

from worldline.schema import WorldlineError
from worldline.train.log import read_log
from worldline.train.loop import Trainer
from worldline.train.validation import Measurement, Schedule, Validator, best_of, history, read_best


def watched(run_dir, *, every=2, better="higher", metric="score", scores=None, cfg=None, progress=None, settings=None):
    """A trainer whose network `b` is measured: by its averaged weights, or by `scores`; every measurement draws noise."""
    cfg = cfg or config()
    trainer = Trainer(Toy(), Numbers(), cfg, run_dir, progress=progress)
    calls = []

    def measure():
        torch.rand(7)  # as whoever plays a model might
        calls.append(trainer.step)
        own = float(trainer.emas["b"].state()["weight"].sum())
        return {"score": own if scores is None else scores[trainer.step], "other": 1.0}, {"step": trainer.step}

    schedule = Schedule(every=every, last=cfg.steps, metric=metric, better=better, settings=settings or {})
    trainer.observers = (Validator(run_dir, schedule, measure, lambda: trainer.trained_state("b")),)
    return trainer, calls


def test_measuring_changes_no_bit_of_what_is_learnt(tmp_path):
    plain = Trainer(Toy(), Numbers(), config(), tmp_path / "plain")
    plain.fit()
    random = torch.get_rng_state()
    trainer, calls = watched(tmp_path / "watched")
    trainer.fit()
    assert calls == [2, 4, 6, 8]
    for key, value in everything(plain).items():
        assert torch.equal(value, everything(trainer)[key]), key
    assert torch.equal(torch.get_rng_state(), random), "nor of what is drawn next"


def test_figures_reach_the_log_in_lines_of_their_own(tmp_path):
    trainer, _ = watched(tmp_path, every=3)
    trainer.fit()
    lines = [line for line in read_log(tmp_path) if "validation/score" in line]
    assert [line["step"] for line in lines] == [2, 5, 7], "every third, and the last"
    assert all(line["validation/seconds"] >= 0 for line in lines)


@pytest.mark.parametrize(("better", "step"), [("higher", 4), ("lower", 6)])
def test_the_best_weights_are_kept_whichever_way_is_good(tmp_path, better, step):
    trainer, _ = watched(tmp_path, better=better, scores={2: 1.0, 4: 3.0, 6: 0.5, 8: 3.0})
    seen = {}
    trainer.progress = lambda n, steps, last: seen.update({n: trainer.trained_state("b")})
    trainer.fit()
    weights, what = read_best(tmp_path)
    assert what == {"metric": "score", "better": better, "value": {4: 3.0, 6: 0.5}[step], "step": step}
    assert weights.keys() == seen[step].keys()
    for key, value in weights.items():
        assert torch.equal(value, seen[step][key])
    assert any(not torch.equal(weights[k], seen[8][k]) for k in weights)


def test_a_resumed_run_remembers_the_best_and_measures_nothing_twice(tmp_path):
    scores = {2: 5.0, 4: 1.0, 6: 2.0, 8: 3.0}
    whole, _ = watched(tmp_path / "whole", scores=scores)
    whole.fit()

    class Crash(Exception):
        pass

    def crash(step, steps, last):
        if step == 7:
            raise Crash  # three steps after the checkpoint, one after the measurement of step 6

    part, first = watched(tmp_path / "part", scores=scores, progress=crash)
    with pytest.raises(Crash):
        part.fit()
    again, second = watched(tmp_path / "part", scores=scores)
    again.fit()
    assert (first, second) == ([2, 4, 6], [8])
    assert read_best(tmp_path / "part")[1] == read_best(tmp_path / "whole")[1]
    assert read_best(tmp_path / "part")[1]["step"] == 2
    timeless = [[{k: v for k, v in row.items() if k != "validation/seconds"} for row in read_log(tmp_path / d)]
                for d in ("whole", "part")]  # fmt: skip
    assert timeless[0] == timeless[1], "the lines of step 6 are there again, once"


def test_other_settings_begin_a_history_afresh(tmp_path):
    trainer, _ = watched(tmp_path, settings={"episodes": 4}, cfg=config(steps=4))
    trainer.fit()
    longer, calls = watched(tmp_path, settings={"episodes": 8}, cfg=config(steps=8))
    longer.fit()
    assert calls == [6, 8]
    assert sorted(history(tmp_path)) == [6, 8]
    assert history(tmp_path, {"episodes": 4}) == {}
    assert json.loads((tmp_path / "validation" / "history.json").read_text())["metric"] == "score"


def test_a_metric_that_is_not_measured_is_named(tmp_path):
    trainer, _ = watched(tmp_path, metric="skore")
    with pytest.raises(WorldlineError, match="'skore'; expected one of other, score"):
        trainer.fit()


def test_the_best_is_a_number_and_the_earliest_of_equals():
    measured = [Measurement(step, {"m": value}) for step, value in ((6, 2.0), (2, math.nan), (4, 2.0))]
    assert best_of(measured, "m", "higher").step == 4
    assert best_of(measured[1:2], "m", "lower") is None
    assert best_of([], "m", "lower") is None
