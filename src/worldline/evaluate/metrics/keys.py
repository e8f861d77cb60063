"""How well held keys can be read back from what was shown: confusion counts, balanced accuracy, F1.

A held key is one of three on each axis: turn left / none / right, back / none / forward, strafe left / none / right. Plain
accuracy flatters, since no key is held most of the time on most axes: a picture that never moves would score 0.7 on strafing.
Balanced accuracy is the mean recall over the classes that were asked for: 1 over their number for any constant answer.
"""

from __future__ import annotations

import numpy as np

from worldline.schema import Controls, ShapeError

KEY_AXES = ("turn", "forward", "strafe")
CLASSES = 3  # negative (left, back), none, positive (right, forward)


def held_keys(controls: Controls) -> np.ndarray:
    """int8 [F, 3]: 0 negative, 1 none, 2 positive of turn (right), forward, strafe (right), as asked for."""
    asked = np.stack([controls.look[:, 0], controls.move[:, 2], controls.move[:, 0]], axis=1)
    return (1 + np.sign(asked)).astype(np.int8)


def confusion(asked: np.ndarray, read: np.ndarray) -> np.ndarray:
    """int [F, 3] twice -> counts [axis, asked class, read class]. Raises ShapeError where the two differ in shape."""
    if asked.shape != read.shape or asked.ndim != 2 or asked.shape[1] != len(KEY_AXES):
        raise ShapeError(f"keys asked {asked.shape} and read {read.shape}: expected two arrays [F, {len(KEY_AXES)}]")
    flat = asked.astype(int) * CLASSES + read.astype(int)
    return np.stack([np.bincount(flat[:, a], minlength=CLASSES**2).reshape(CLASSES, CLASSES) for a in range(3)])


def balanced_accuracy(counts: np.ndarray) -> float:
    """counts [asked, read] -> mean recall over the classes asked for; nan where there are fewer than two of them."""
    asked = counts.sum(axis=1)
    there = asked > 0
    return float((np.diag(counts)[there] / asked[there]).mean()) if there.sum() > 1 else float("nan")


def chance(counts: np.ndarray) -> float:
    """Balanced accuracy of any constant answer; nan as above."""
    there = int((counts.sum(axis=1) > 0).sum())
    return 1 / there if there > 1 else float("nan")


def macro_f1(counts: np.ndarray) -> float:
    """Mean of 2 TP / (2 TP + FP + FN) over the classes asked for; nan as above."""
    asked, read, hit = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
    there = asked > 0
    return float((2 * hit[there] / (asked + read)[there]).mean()) if there.sum() > 1 else float("nan")
