"""How much may be on its way, in virtual time: a fast client gets every frame, a slow one the newest."""

from __future__ import annotations

import heapq

import pytest

from worldline.serve.window import PROOF, STALL_S, SendWindow, TokenBucket

FPS, CHUNK_S = 16.0, 0.25


def play(seconds: float, delay: float, turn: float, told: bool = False) -> tuple[list[float], int, int]:
    """A world at FPS and a client `delay` away each way who takes `turn` seconds a frame. Returns ages of frames when the
    client has taken them, the most ever on their way, and frames skipped. told: the client says how far it is."""
    window = SendWindow(FPS, CHUNK_S)
    window.network = 2 * delay if told else 0.0
    made, pending, skipped, most = 0, None, 0, 0
    acks: list[tuple[float, int]] = []
    ages, client_free, now = [], 0.0, 0.0
    while now < seconds:
        while acks and acks[0][0] <= now:
            at, frame = heapq.heappop(acks)
            window.acked(frame, at)
        if made / FPS <= now:
            skipped += pending is not None
            pending, made = (made, now), made + 1
        if pending is not None and window.room(now) and not window.stalled(now):
            frame, born = pending
            window.sent(frame, now)
            taken = max(now + delay, client_free) + turn
            client_free = taken
            heapq.heappush(acks, (taken + delay, frame))
            ages.append(taken - born)
            pending = None
        most = max(most, window.in_flight)
        now += 0.001
    return ages, most, skipped


@pytest.mark.parametrize(
    ("round_trip", "told"), [(0.002, False), (0.05, False), (0.2, False), (0.2, True), (0.8, True)]
)
def test_a_client_that_keeps_up_gets_every_frame(round_trip, told):
    ages, most, skipped = play(60, round_trip / 2, 0.005, told)
    assert skipped <= PROOF * (1 + FPS * round_trip)  # while nothing is known of it
    assert most <= FPS * (CHUNK_S + round_trip) + 1
    assert max(ages) < CHUNK_S + round_trip


@pytest.mark.parametrize("turn", [0.1, 0.25, 1.0, 3.0])
def test_a_slow_client_gets_the_newest_frame(turn):
    """A minute at 1 frame a second: what it sees is never older than a chunk and its own round trip."""
    ages, most, skipped = play(60, 0.01, turn)
    assert max(ages) < CHUNK_S + turn + 0.02
    assert most <= 1 + (turn < 0.2) * 3
    assert skipped > 60 * FPS / 3


def test_a_far_client_that_does_not_say_so_is_taken_for_a_slow_one():
    ages, most, skipped = play(60, 0.4, 0.005)
    assert most == 1
    assert len(ages) + skipped == pytest.approx(60 * FPS, abs=2)
    assert max(ages) < CHUNK_S + 0.8


def test_a_client_that_falls_asleep_is_waited_for():
    window = SendWindow(FPS, CHUNK_S)
    now = 0.0
    for frame in range(20):
        window.sent(frame, now)
        window.acked(frame, now + 0.01)
        now += 1 / FPS
    while window.room(now):
        window.sent(frame := frame + 1, now)
        now += 1 / FPS
    assert window.in_flight <= FPS * (CHUNK_S + 0.02)
    assert not window.stalled(now)
    now += STALL_S + 0.1
    assert window.stalled(now)
    assert window.size(now) == 1
    window.acked(frame, now)
    assert not window.stalled(now)


def test_acks_of_what_was_never_sent_change_nothing():
    window = SendWindow(FPS, CHUNK_S)
    window.acked(10**6, 1.0)
    window.sent(5, 2.0)
    window.acked(4, 3.0)
    assert window.in_flight == 1
    window.drop()
    assert window.in_flight == 0
    window.acked(5, 4.0)
    assert window.round_trip == float("inf")


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = TokenBucket(10, 5)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert bucket.wait() == pytest.approx(0.1)
    assert bucket.take(100.1)
    assert not bucket.take(100.1)
    assert not bucket.take(50.0)  # a clock that goes back gives nothing
    assert sum(bucket.take(100.1 + i / 1000) for i in range(1, 2001)) == pytest.approx(20, abs=1)
