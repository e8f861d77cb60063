"""Every suite, on the replay: each figure that has its episodes is had, and stands where a perfect world has it."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.evaluate.figures import BY_NAME
from worldline.evaluate.references import SHARED, reference
from worldline.evaluate.score import score
from worldline.evaluate.suites import Entry, cases
from worldline.evaluate.truth import truth_of

pytest.importorskip("vizdoom")

ENTRIES = [
    Entry("S1", "left", 1, frames=32), Entry("S1", "forward", 1, frames=32), Entry("S4", "spin-1", 1),
    Entry("S5", "square", 1), Entry("S6", "yaw", 1), Entry("S8", "idle", 1, frames=32), Entry("S9", "twin", 1),
    Entry("S9", "burst", 1), Entry("S9", "start-noise", 1), Entry("S10", "roam", 1, "id", 72),
    Entry("S10", "roam", 1, "ood-look", 72),
]  # fmt: skip
PERFECT = {
    "strafe_gain": (1, 1), "strafe_corr": (1, 1), "forward_gain": (1, 1), "closure": (0, 3), "seam": (30, 60),
    "loop_gain": (12, 60), "revisit_gain": (10, 60), "idle_turn": (0, 0.2), "idle_change": (0, 0.5), "recovery": (0, 0),
    "tolerant_id": (60, 60), "tolerant_ood_look": (60, 60), "blank": (0, 0), "strobes": (0, 0), "non_finite": (0, 0),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_suite_gives_its_figures(tmp_path):
    truths = [truth_of(case, tmp_path) for case in cases(ENTRIES)]
    rows = {row: {t.case.id: score(reference(row, t), t) for t in truths} for row in SHARED}
    rows["model"] = rows["replay"]
    perfect = {name: BY_NAME[name].value(list(rows["model"].values()), rows) for name in PERFECT}
    wrong = {n: v for n, v in perfect.items() if not PERFECT[n][0] - 1e-6 <= v <= PERFECT[n][1] + 1e-6}
    assert not wrong
    rows["model"] = rows["frozen"]
    frozen = {name: BY_NAME[name].value(list(rows["model"].values()), rows) for name in PERFECT}
    assert frozen["loop_gain"] == frozen["revisit_gain"] == 0
    assert frozen["closure"] == pytest.approx(360, abs=2)
    assert frozen["strafe_corr"] == 0
    assert frozen["recovery"] == 0  # as still as its undisturbed twin: nothing was lost
    look = next(t for t in truths if t.case.split == "ood-look")
    assert np.abs(look.frames[0].astype(int) - look.frames[0][..., [1, 2, 0]]).mean() > 3
