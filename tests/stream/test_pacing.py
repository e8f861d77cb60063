"""The pacing rule in virtual time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from worldline.stream.pacing import Pacer


def play(pacer: Pacer, compute: list[float]) -> tuple[list[float], list[float]]:
    """Chunks that take `compute` seconds each, one after the other -> (due times, start times)."""
    now, due, starts = 0.0, [], []
    for seconds in compute:
        now = max(now, pacer.start_at())
        starts.append(now)
        now += seconds
        due += pacer.show(now, seconds)
    return due, starts


def test_a_fast_machine_shows_frames_at_native_rate_without_a_gap():
    due, _ = play(Pacer(16, 4), [0.05] * 20)
    gaps = [b - a for a, b in pairwise(due)]
    assert gaps == pytest.approx([1 / 16] * len(gaps))


def test_chunks_start_as_late_as_they_may():
    pacer = Pacer(16, 4, margin=0.01)
    due, starts = play(pacer, [0.05] * 20)
    assert due[40] - starts[10] == pytest.approx(0.05 + 0.01)


def test_a_slow_machine_spreads_its_frames_evenly():
    due, starts = play(Pacer(16, 4), [0.4] * 20)
    gaps = [b - a for a, b in pairwise(due[20:])]
    assert gaps == pytest.approx([0.1] * len(gaps))
    assert starts[-1] == pytest.approx(19 * 0.4)  # it never waits


def test_one_late_chunk_does_not_make_the_next_hurry():
    due, _ = play(Pacer(16, 4), [0.05] * 8 + [0.5] + [0.05] * 8)
    gaps = [b - a for a, b in pairwise(due)]
    assert min(gaps) > 0.99 / 16
    assert sum(g > 1.01 / 16 for g in gaps) <= 8


def test_after_a_restart_the_first_frame_is_due_at_once():
    pacer = Pacer(16, 4)
    play(pacer, [0.05] * 4)
    pacer.restart()
    assert pacer.start_at() == float("-inf")
    assert pacer.show(100.0, 0.05)[0] == 100.0


def revisions(pacer: Pacer, ready: float, compute: float) -> list[tuple[int, float]]:
    """Every chance to revise a chunk that was shown at `ready`, each taken at its time."""
    pacer.show(ready, compute)
    found, now = [], ready
    while (chance := pacer.revise_at(now)) is not None:
        found.append(chance)
        now = chance[1] + compute
    return found


def test_a_fast_machine_revises_every_frame_still_to_come():
    pacer = Pacer(16, 4, margin=0.01)
    pacer.committed(0.01)
    chances = revisions(pacer, 0.0, 0.02)
    assert [k for k, _ in chances] == [1, 2, 3]
    assert [when for _, when in chances] == pytest.approx([k / 16 - 0.02 - 0.01 for k in (1, 2, 3)])


def test_a_revision_leaves_time_for_the_commit_before_the_next_chunk():
    pacer = Pacer(16, 4, margin=0.01)
    pacer.committed(0.05)  # 20 ms and 50 do not fit into a frame's 62.5
    assert [k for k, _ in revisions(pacer, 0.0, 0.02)] == [1, 2]


def test_a_machine_that_needs_more_than_a_frame_revises_fewer_and_a_slow_one_none():
    pacer = Pacer(16, 4, margin=0.01)
    assert [k for k, _ in revisions(pacer, 0.0, 0.08)] == [2]
    assert [k for k, _ in revisions(Pacer(16, 4), 0.0, 0.2)] == []
    assert [k for k, _ in revisions(Pacer(16, 4), 0.0, 0.6)] == []
    assert Pacer(16, 1).revise_at(0.0) is None


def test_what_a_revision_takes_is_learnt():
    pacer = Pacer(16, 4, margin=0.01)
    pacer.show(0.0, 0.02)
    pacer.revised(0.04)
    assert pacer.estimate == 0.04


def test_a_stop_of_the_picture_moves_the_chances_too():
    pacer = Pacer(16, 4, margin=0.01)
    pacer.show(0.0, 0.02)
    k, when = pacer.revise_at(0.0)
    pacer.postpone(1.0)
    assert pacer.revise_at(1.0) == (k, pytest.approx(when + 1.0))
