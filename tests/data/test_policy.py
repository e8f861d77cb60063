"""The walk: balanced over what one can do, held long enough to see, honest about walls."""

from __future__ import annotations

from collections import Counter

import numpy as np

from worldline.data.dataset import ClipDataset
from worldline.data.sources.doomrooms.policy import CLASSES, YAW_RATES, random_walk, wall_contact
from worldline.schema import Controls


def sample(walks: int = 400) -> Controls:
    rng = np.random.default_rng(0)
    return Controls.concat([random_walk(44, rng) for _ in range(walks)])


def test_actions_are_balanced():
    controls = sample()
    share = {k: n / len(controls) for k, n in Counter(controls.keys).items()}
    asked = np.array([p for p, *_ in CLASSES.values()])
    for (p, *_, keys), want in zip(CLASSES.values(), asked / asked.sum(), strict=True):
        assert abs(share[keys] - want) < 0.03, (keys, p)
    right, left = (controls.look[:, 0] > 0).mean(), (controls.look[:, 0] < 0).mean()
    assert abs(right - left) < 0.03
    assert 0.4 < right + left < 0.7
    assert 0.04 < (~controls.move.any(axis=1) & ~controls.look.any(axis=1)).mean() < 0.15


def test_yaw_rates_are_the_promised_ones():
    turning = np.abs(sample().look[:, 0])
    turning = turning[turning > 0]
    assert set(turning.tolist()) == set(YAW_RATES)
    assert (turning == 2).mean() > 0.5


def test_actions_are_held():
    rng = np.random.default_rng(1)
    for _ in range(50):
        walk = random_walk(44, rng)
        row = np.concatenate([walk.move, walk.look], axis=1)
        changes = np.flatnonzero((row[1:] != row[:-1]).any(axis=1)) + 1
        inner = np.diff(changes)  # the first and last segment may be cut
        assert (inner >= 6).all()


def test_keys_say_what_the_numbers_do():
    controls = sample(40)
    for keys, move, look in zip(controls.keys, controls.move, controls.look, strict=True):
        assert (move[2] > 0) == ("w" in keys)
        assert (move[2] < 0) == ("s" in keys)
        assert (move[0] > 0) == ("d" in keys)
        assert (look[0] > 0) == ("right" in keys)
        assert (look[0] < 0) == ("left" in keys)


def test_wall_contact_is_walking_that_does_not_happen():
    walk = Controls(np.tile((0, 0, 1), (20, 1)), np.zeros((20, 3)))
    c2w = np.tile(np.eye(4), (21, 1, 1))
    c2w[:, 0, 3] = 4.0 * np.minimum(np.arange(21), 10)  # stopped by a wall after ten frames
    contact = wall_contact(walk, c2w, 4.0)
    assert not contact[:10].any()
    assert contact[10:].all()
    assert not wall_contact(Controls.still(20), c2w, 4.0).any()


def test_few_clips_are_stuck(dataset: ClipDataset):
    shares = np.array([r["contact_share"] for r in dataset.rows])
    assert (shares <= 0.6).mean() > 0.8
