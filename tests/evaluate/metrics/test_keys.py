"""Confusion, balanced accuracy and F1 of held keys, in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.evaluate.metrics.keys import balanced_accuracy, chance, confusion, held_keys, macro_f1
from worldline.schema import Controls, ShapeError


def test_keys_are_signs_of_turn_forward_and_strafe():
    move = np.array([[0, 0, 1], [-1, 0, 0], [0.2, 0, -0.5], [0, 1, 0]])
    look = np.array([[2.0, 0, 0], [-0.5, 3, 0], [0, 0, 0], [0, 0, 1]])
    assert held_keys(Controls(move, look)).tolist() == [[2, 2, 1], [0, 1, 0], [1, 0, 2], [1, 1, 1]]


def test_balanced_accuracy_counts_every_key_alike_and_a_constant_answer_as_chance():
    asked = np.zeros((100, 3), dtype=np.int8)
    asked[:80] = 1
    asked[90:] = 2
    constant = confusion(asked, np.ones_like(asked))[0]
    assert balanced_accuracy(constant) == pytest.approx(1 / 3)
    assert chance(constant) == pytest.approx(1 / 3)
    read = asked.copy()
    read[80:85] = 1  # half of the ten left keys missed
    counts = confusion(asked, read)[2]
    assert counts.tolist() == [[5, 5, 0], [0, 80, 0], [0, 0, 10]]
    assert balanced_accuracy(counts) == pytest.approx((0.5 + 1 + 1) / 3)
    assert macro_f1(counts) == pytest.approx((10 / 15 + 160 / 165 + 1) / 3)


def test_a_key_never_asked_for_is_left_out_and_one_key_alone_tells_nothing():
    two = np.array([[9, 1, 0], [0, 8, 2], [0, 0, 0]])
    assert balanced_accuracy(two) == pytest.approx(0.85)
    assert chance(two) == 0.5
    # The two keys read as the third are missed, and count against none that was asked for.
    assert macro_f1(two) == pytest.approx((18 / 19 + 16 / 19) / 2)
    one = np.array([[0, 0, 0], [3, 5, 2], [0, 0, 0]])
    assert all(np.isnan(f(one)) for f in (balanced_accuracy, chance, macro_f1))


def test_exchanged_sides_are_all_wrong():
    asked = np.array([[0, 0, 0], [2, 2, 2]] * 5)
    counts = confusion(asked, 2 - asked)
    assert [balanced_accuracy(c) for c in counts] == [0, 0, 0]
    with pytest.raises(ShapeError):
        confusion(asked, asked[:, :2])
