"""Seats in processes of their own: walks stay where they began, a dead worker is told and started again."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import psutil
import pytest
from tests.serve.conftest import running
from tests.serve.test_sessions import until
from tests.serve.walker import agree, pictures, walker, without_gap

from worldline.serve.app import create_app
from worldline.serve.workers import WorkerSeat
from worldline.stream.engine import Engine

pytestmark = pytest.mark.slow  # two processes load torch


@pytest.fixture(scope="module")
def two(world):
    """(address, lobby) of a router with two workers."""
    load = partial(Engine.load, world, threads=1)
    app = create_app([WorkerSeat(load, str(i)) for i in range(2)])
    with running(app) as address:
        until(lambda: sum(p.seat.state.ready for p in app.state.lobby.places) == 2, seconds=90)
        children = [p.seat.process.pid for p in app.state.lobby.places]
        yield address, app.state.lobby
    assert not any(psutil.pid_exists(pid) for pid in children)


def test_two_play_at_once_and_the_third_waits(two):
    address, lobby = two
    with walker(address) as a, walker(address, {"start": "cellar"}) as b, walker(address) as c:
        a.frame(), b.frame()
        a.press("KeyW")
        frames = {w: [w.frame() for _ in range(12)] for w in (a, b)}
        assert all(without_gap(f) for f in frames.values())
        assert a.text("scene")["prompt"] == "a hall"
        assert b.text("scene")["prompt"] == "a cellar"
        assert {f.keys for f in frames[b]} == {0}
        assert 1 in {f.keys for f in frames[a]}
        assert c.state("queued")["seats"] == 2
        assert len(lobby.live) == 2
        file = a.ask("save")["file"]
        assert file["bytes"] > 0
        assert lobby.spool.find(file["id"]).stat().st_size == file["bytes"]
        assert a.ask("rewind", chunk=1)["type"] == "done"


def test_a_walk_resumes_in_its_worker(two):
    address, _ = two
    with walker(address, leave=False) as w:
        before = pictures([w.frame() for _ in range(9)])
        secret = w.live()["resume"]
    with walker(address) as other, walker(address, {"resume": secret}) as w:
        other.frame()
        assert w.live()["resumed"]
        assert w.text("scene")["frame"] >= max(before) - 1
        w.ask("rewind", chunk=0)
        w.scene(w.text(lambda m: m["type"] == "scene" and m["cause"] == "rewind")["generation"])
        while (f := w.frame()).frame != 0:
            pass
        again = pictures([f] + [w.frame() for _ in range(8)])
        assert agree({k: v for k, v in before.items() if k}, {k: v for k, v in again.items() if k}) >= 2


def test_a_dead_worker_is_told_and_started_again(two):
    address, lobby = two
    with walker(address) as a, walker(address) as b:
        a.frame(), b.frame()
        visit = lobby.visits[a.live()["resume"]]
        os.kill(visit.place.seat.process.pid, signal.SIGKILL)
        ended = a.state("ended")
        assert (ended["reason"], ended["retry"]) == ("worker", "reconnect")
        assert without_gap([b.frame() for _ in range(5)])  # the other one plays on
        with walker(address) as again:
            assert again.live()
            assert again.frame().frame == 0
            assert without_gap([b.frame() for _ in range(5)])
    until(lambda: not lobby.live)
    time.sleep(0.1)
    assert not lobby.visits
