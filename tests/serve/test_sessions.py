"""Seats, the queue, leases and resuming: a real server whose clock the tests put forward."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from tests.serve.conftest import running
from tests.serve.test_app import http
from tests.serve.walker import walker, without_gap
from websockets.exceptions import ConnectionClosed

from worldline.serve import protocol
from worldline.serve.app import create_app
from worldline.serve.lobby import NEXT, NOTICE_S, Rules, Visit
from worldline.serve.protocol import Hello


class Clock:
    """The lobby's clock; `forward` makes it jump."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def forward(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def serving(engine):
    """A function that starts a server with rules: (address, lobby, clock)."""
    stack = []

    def start(**rules):
        app = create_app(engine, rules=Rules(**rules))
        clock = Clock()
        app.state.lobby.clock = clock
        context = running(app)
        stack.append(context)
        return context.__enter__(), app.state.lobby, clock

    yield start
    for context in stack:
        context.__exit__(None, None, None)


def until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def closed_with(w) -> int:
    with pytest.raises(ConnectionClosed):
        w.text("never")
    return w.socket.protocol.close_code


def queued_at(w, position: int) -> dict:
    return w.text(lambda m: m["type"] == "state" and m["state"] == "queued" and m["position"] == position)


def test_those_who_come_later_wait_in_order(serving):
    address, lobby, _ = serving()
    with walker(address) as first, walker(address) as second, walker(address) as third:
        first.frame()
        told = queued_at(second, 1)
        assert (told["seats"], told["eta_s"]) == (1, None)
        assert queued_at(third, 2)["of"] == 2
        kinds = [m["type"] for m in second.said]
        assert kinds.index("hello") < kinds.index("state")
        assert json.loads(http(address, "/api/status")[1])["waiting"] == 2
        assert second.ask("pause")["code"] == "request"  # nothing to pause yet
        assert without_gap([first.frame() for _ in range(6)])
        first.say("leave")
        assert first.state("ended")["reason"] == "left"
        assert closed_with(first) == 1000
        second.live()
        assert second.frame().frame == 0
        queued_at(third, 1)
        secret = second.live()["resume"]
        assert json.loads(http(address, "/api/session", worldline_session=secret)[1])["state"] == "live"
        assert http(address, "/api/session", "DELETE", worldline_session=secret)[0] == 204
        assert closed_with(second) == 1000
        assert http(address, "/api/session", worldline_session=secret)[0] == 404
        assert third.frame().frame == 0
        assert third.state("live")
    assert lobby.counters["ended_left"] == 3


def test_a_full_queue_sends_away(serving):
    address, _, _ = serving(queue=1)
    with walker(address) as first, walker(address) as second, walker(address) as third:
        first.frame()
        queued_at(second, 1)
        assert third.text("error")["code"] == "queue_full"
        assert closed_with(third) == 1013


def test_a_lease_ends_only_when_others_wait(serving):
    address, _, clock = serving(lease_s=60.0)
    with walker(address) as first:
        first.frame()
        clock.forward(300)
        assert [first.frame().frame for _ in range(8)]  # nobody waits
        with walker(address) as second:
            assert queued_at(second, 1)["eta_s"] == 60
            notice = first.text("lease")
            assert (notice["reason"], 0 < notice["left_s"] <= NOTICE_S) == ("waiting", True)
            clock.forward(NOTICE_S)
            ended = first.state("ended")
            assert (ended["reason"], ended["retry"]) == ("lease", "later")
            assert closed_with(first) == 4410
            assert second.frame().frame == 0


def test_a_lease_is_safe_until_it_ends(serving):
    address, _, clock = serving(lease_s=60.0)
    with walker(address) as first:
        first.frame()
        with walker(address) as second:
            queued_at(second, 1)
            clock.forward(30)
            [first.frame() for _ in range(12)]
            assert not any(m["type"] == "lease" for m in first.said)
            second.say("leave")
            second.state("ended")
        clock.forward(60)
        assert first.frame()


def test_who_does_nothing_loses_the_seat_but_not_who_holds_a_key(serving):
    address, _, clock = serving(idle_s=60.0)
    with walker(address) as w:
        w.frame()
        w.press("KeyW")
        w.sync()
        clock.forward(300)
        [w.frame() for _ in range(8)]
        w.press()
        w.sync()
        clock.forward(50)
        assert w.text("lease")["reason"] == "idle"
        w.press("KeyA")  # any input keeps it
        assert w.text(lambda m: m["type"] == "lease" and m["left_s"] is None)
        w.press()
        w.sync()
        clock.forward(61)
        assert w.state("ended")["reason"] == "idle"
        assert closed_with(w) == 4408


def test_a_visit_has_its_total(serving):
    address, _, clock = serving(total_s=60.0)
    with walker(address) as w:
        w.frame()
        w.press("KeyW")
        clock.forward(61)
        assert w.state("ended")["reason"] == "total"
        assert closed_with(w) == 4410


def test_a_walk_survives_its_connection(serving):
    address, lobby, clock = serving()
    with walker(address, leave=False) as w:
        seen = [w.frame().frame for _ in range(10)]
        w.ask("slot_save", slot=3)
        w.ask("record", on=True)
        w.press("KeyW")
        secret, session = w.live()["resume"], w.live()["session"]
        seen += [w.frame().frame for _ in range(5)]
    until(lambda: lobby.visits[secret].connection is None)
    clock.forward(20)
    with walker(address, {"resume": secret, "codecs": ["h264", "jpeg"]}) as w:
        live = w.live()
        assert (live["resumed"], live["session"], live["resume"]) == (True, session, secret)
        scene = w.text("scene")
        assert (scene["cause"], scene["generation"], scene["slots"], scene["recording"]) == ("resume", 2, [3], True)
        still = w.frame()
        assert still.flags & protocol.STILL
        assert (still.frame, still.codec) == (scene["frame"], "h264")
        assert still.frame - seen[-1] in (0, 1)
        frames = [w.frame() for _ in range(6)]
        assert without_gap([still, *frames])
        assert frames[-1].keys == 0  # nobody holds a key any more
        assert w.ask("record", on=False)["file"]["bytes"] > 0
    assert lobby.counters["resumed"] == 1


def test_nobody_plays_while_nobody_is_there(serving):
    address, lobby, _ = serving()
    with walker(address, leave=False) as w:
        w.frame()
        secret = w.live()["resume"]
    visit = lobby.visits[secret]
    until(lambda: visit.walk is not None and visit.walk.player._away)
    chunks = [visit.walk.player._walk.chunk]
    for _ in range(3):
        time.sleep(0.4)
        chunks.append(visit.walk.player._walk.chunk)
    assert chunks[1:] == [chunks[1]] * 3  # the one that was being made is finished


def test_a_walk_is_kept_for_its_time_only(serving):
    address, lobby, clock = serving(resume_s=30.0)
    with walker(address, leave=False) as w:
        w.frame()
        secret = w.live()["resume"]
    until(lambda: lobby.visits[secret].connection is None)
    clock.forward(31)
    with walker(address, {"resume": secret}) as w:
        assert not w.live()["resumed"]
        assert w.live()["resume"] != secret
        assert w.text("scene")["cause"] == "start"
        until(lambda: len(lobby.visits) == 1)


def test_a_walk_without_a_client_yields_to_those_who_wait(serving):
    address, _, clock = serving(resume_s=600.0, resume_wanted_s=8.0)
    with walker(address, leave=False) as w:
        w.frame()
    with walker(address) as second:
        queued_at(second, 1)
        clock.forward(9)
        assert second.frame().frame == 0


def test_a_second_connection_takes_the_walk_over(serving):
    address, _, _ = serving()
    with walker(address) as old:
        old.frame()
        with walker(address, {"resume": old.live()["resume"]}) as new:
            assert old.state("ended")["reason"] == "replaced"
            assert closed_with(old) == 4409
            assert new.live()["resumed"]
            assert new.frame().generation == 2
            assert new.frame().generation == 2


def test_a_place_in_the_queue_is_kept_too(serving):
    address, lobby, _ = serving()
    with walker(address) as first:
        first.frame()
        with walker(address, leave=False) as second:
            secret = queued_at(second, 1)["resume"]
        with walker(address) as third:
            queued_at(third, 1)  # those who are there count
            with walker(address, {"resume": secret}) as second:
                queued_at(second, 1)
                queued_at(third, 2)
                first.say("leave")
                assert second.frame().frame == 0
                assert len(lobby.queue) == 1


def test_secrets_of_others_are_worth_nothing(serving):
    address, lobby, _ = serving()
    with walker(address) as first:
        first.frame()
        for guess in (first.live()["session"], "x" * 32, ""):
            with walker(address, {"resume": guess}) as w:
                queued_at(w, 1)
        assert first.frame().generation == 1
        assert lobby.counters["resumed"] == 0


def test_a_visit_goes_only_where_the_table_says():
    for begin, end in itertools.product(NEXT, NEXT):
        visit = Visit(Hello(2), 0.0, state=begin)
        if end in NEXT[begin]:
            visit.go(end)
            assert visit.state == end
        else:
            with pytest.raises(RuntimeError, match=f"from {begin} to {end}"):
                visit.go(end)
    assert NEXT["ended"] == ()
