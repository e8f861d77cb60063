"""Intervals that cover, and differences that are told only when they are there."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.evaluate.statistics import mean_interval, paired_difference, pooled_interval, resamples
from worldline.schema import ShapeError


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = mean_interval(rng.normal(3, 2, 24), draws=300)
        covered += found.low <= 3 <= found.high
    assert 0.86 <= covered / 200 <= 0.99


def test_one_episode_has_no_interval():
    found = mean_interval(np.array([4.0]))
    assert found.value == 4
    assert np.isnan([found.low, found.high]).all()


def test_a_pooled_figure_is_resampled_by_episode():
    data = np.array([1.0, 2, 3, 10])
    found = pooled_interval(4, lambda i: float(data[i].mean()), draws=400)
    assert found.value == 4
    assert 1 <= found.low < 4 < found.high <= 10
    assert resamples(5, 10).tolist() == resamples(5, 10).tolist()


def test_a_paired_difference_sees_what_spread_between_episodes_hides():
    rng = np.random.default_rng(1)
    a = rng.normal(20, 6, 24)
    better = paired_difference(a, a + 0.5 + rng.normal(0, 0.3, 24))
    assert better.told
    assert better.value == pytest.approx(0.5, abs=0.2)
    same = paired_difference(a, a + rng.normal(0, 0.3, 24))
    assert not same.told or abs(same.value) < 0.2


def test_equals_do_not_differ_and_few_episodes_tell_nothing():
    a = np.arange(6.0)
    assert paired_difference(a, a).p == 1
    assert not paired_difference(a, a).told
    assert paired_difference(a[:3], a[:3] + 1).p == 0.25  # all of one sign, by chance one time in four
    with pytest.raises(ShapeError, match="same episodes"):
        paired_difference(a, a[:-1])


def test_chance_is_seldom_told():
    rng = np.random.default_rng(2)
    told = sum(
        paired_difference(x := rng.normal(0, 1, 16), x + rng.normal(0, 1, 16), draws=200).told for _ in range(100)
    )
    assert told <= 14
