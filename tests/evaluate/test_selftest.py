"""The self-test itself: it fails where a figure is deaf, and where one reacts that should not."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldline.evaluate import selftest
from worldline.evaluate.faults import FAULTS
from worldline.evaluate.selftest import EXPECTED, QUIET, Expected, self_test
from worldline.evaluate.suites import Entry, cases

pytest.importorskip("vizdoom")


@pytest.fixture(scope="module")
def truths(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("truth")


SHORT = (Entry("S2", "yaw", 1, frames=40),)


def test_every_fault_has_its_expectation():
    assert set(EXPECTED) == {*FAULTS, "oracle"}
    assert all(name in QUIET for e in EXPECTED.values() for name in e.may)


def test_a_planted_delay_is_seen_and_a_figure_that_cannot_be_had_is_deaf(truths):
    (found,) = self_test(truths, ("delay 4",), episodes=cases(list(SHORT))).found
    assert found.figures["yaw_lag"] == 4
    assert set(found.deaf) == {"psnr_4s", "tolerant_4s"}  # no episode of four seconds
    assert not found.nervous
    assert not found.passed


def test_a_figure_that_should_have_kept_still_is_named(truths, monkeypatch):
    monkeypatch.setitem(selftest.EXPECTED, "flicker 15 %", Expected({"flicker": (10, 100)}))
    (found,) = self_test(truths, ("flicker 15 %",), episodes=cases(list(SHORT))).found
    assert not found.deaf
    assert {"warp_ratio", "strobes"} <= set(found.nervous)
    assert "yaw_lag" not in found.nervous


def test_a_mended_fault_is_deaf(truths, monkeypatch):
    monkeypatch.setitem(FAULTS, "mirrored", FAULTS["none"])
    (found,) = self_test(truths, ("mirrored",), episodes=cases(list(SHORT))).found
    assert {"yaw_gain", "yaw_corr"} <= set(found.deaf)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_fault_is_seen_by_what_should_see_it_and_nothing_else(truths):
    found = self_test(truths)
    assert found.passed, [(f.fault, f.deaf, f.nervous) for f in found.found if not f.passed]
