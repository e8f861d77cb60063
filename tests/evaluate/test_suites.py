"""Scripts, seeds and cases: exact inverses, free ways, fixed for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from worldline.data.reserved import FIRST_EVALUATION_MAP
from worldline.evaluate import scripts
from worldline.evaluate.suites import ABOUT, PRESETS, Entry, cases, level, preset, seeds, suite_hash
from worldline.schema import WorldlineError


@pytest.fixture(scope="module")
def smoke():
    return cases(preset("smoke"))


def test_seed_lists_are_the_published_ones():
    text = repr(sorted((k, list(v)) for k, v in seeds().items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == SEEDS_SHA256
    assert min(seeds()["ood-map"] + seeds()["ood-look"]) >= FIRST_EVALUATION_MAP
    assert not set(seeds()["ood-map"]) & set(seeds()["ood-look"])
    assert max(seeds()["id"]) < FIRST_EVALUATION_MAP


def test_cases_are_the_same_on_every_call_and_in_every_preset(smoke):
    again = cases(preset("smoke"))
    assert [c.fingerprint() for c in again] == [c.fingerprint() for c in smoke]
    assert suite_hash(again) == suite_hash(smoke)
    assert suite_hash(smoke[:-1]) != suite_hash(smoke)
    alone = cases([Entry("S3", "pan-30", 1)])[0]
    assert alone.fingerprint() == next(c for c in smoke if c.variant == "pan-30").fingerprint()
    assert len({c.id for c in smoke}) == len(smoke)


def test_every_suite_is_in_the_full_preset():
    assert {e.suite for e in PRESETS["full"]} == set(ABOUT)
    made = cases([Entry(s, v, 1, frames=64) for s, v in SAMPLES])
    assert {c.suite for c in made} == {s for s, _ in SAMPLES}


SAMPLES = [
    ("S1", "left"), ("S2", "yaw+forward"), ("S3", "pan-180"), ("S4", "spin-1"), ("S5", "square"), ("S6", "forward"),
    ("S7", "roam"), ("S8", "idle"), ("S9", "burst"), ("S9", "wall"), ("S10", "pan-90"), ("S11", "roam"),
]  # fmt: skip


@pytest.mark.parametrize(("suite", "variant"), SAMPLES)
def test_no_script_meets_a_wall(suite, variant):
    case = cases([Entry(suite, variant, 1, frames=96)])[0]
    if suite != "S9":  # one of its kinds faces a wall, and none walks
        assert scripts.is_free(level(case.map_seed), scripts.walked(case.spawn, case.controls))
    assert np.isfinite(case.controls.look).all()


def test_scripts_that_return_do_return():
    for degrees in (30, 60, 90, 180):
        controls, marks = scripts.pan_return(degrees)
        heading = np.cumsum(controls.look[:, 0])
        assert heading[marks["far"][0] - 1] == pytest.approx(-degrees)
        assert heading[marks["back"][0] - 1] == pytest.approx(0)
    controls, marks = scripts.spin(2)
    assert np.cumsum(controls.look[:, 0])[[t - 1 for t in marks["turn"]]].tolist() == [360, 720]


def test_the_square_ends_where_it_began():
    case = cases([Entry("S5", "square", 1)])[0]
    at = scripts.walked(case.spawn, case.controls)
    start = np.array([case.spawn.x, case.spawn.y])
    assert np.linalg.norm(at[case.marks["back"][0]] - start) < 6
    assert np.linalg.norm(at[case.marks["far"][0]] - start) > 60
    assert case.controls.look[:, 0].sum() == pytest.approx(360)


def test_cases_of_s9_share_their_place_with_their_twin():
    twin, burst = cases([Entry("S9", "twin", 1), Entry("S9", "burst", 1)])
    assert burst.pair == twin.id
    assert (burst.map_seed, burst.spawn, burst.seed) == (twin.map_seed, twin.spawn, twin.seed)
    after = slice(-160, None)
    assert np.array_equal(burst.controls.look[after], twin.controls.look[after])
    assert np.abs(burst.controls.look).max() > scripts.FAST


def test_unknown_names_are_refused():
    with pytest.raises(WorldlineError, match="smoke, quick, full, stages"):
        preset("tiny")
    with pytest.raises(WorldlineError, match="S99"):
        preset("smoke", ("S99",))
    with pytest.raises(WorldlineError, match="larger preset"):
        preset("smoke", ("S11",))


SEEDS_SHA256 = "692dcbf6a25c"
