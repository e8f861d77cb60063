"""A short run of what `benchmarks.fuzz_server` does at length: nothing a client sends or omits hurts the server."""

from __future__ import annotations

import asyncio
import time

import pytest
from benchmarks.fuzz_server import controls
from tests.serve.conftest import running

from benchmarks import server_abuse as abuse
from worldline.serve.app import access_of, create_app
from worldline.serve.lobby import Rules

TOKEN = "a token for tests only"


@pytest.fixture
def target(engine):
    """A guarded server with one seat: (target, lobby)."""
    app = create_app(engine, access=access_of("127.0.0.1", TOKEN), rules=Rules(resume_s=0.2))
    with running(app) as address:
        yield abuse.Target(address, TOKEN), app.state.lobby
    assert app.state.lobby.counters["failures"] == 0


def at_rest(lobby, seconds: float = 60.0) -> bool:
    """Whether the server is as before anybody came."""
    deadline = time.monotonic() + seconds
    while (lobby.visits or lobby.live or lobby.queue) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not (lobby.visits or lobby.live or lobby.queue)


async def served(target: abuse.Target) -> None:
    """A new player plays."""
    async with abuse.playing(target, 1000) as player:
        await player.until("scene", timeout=60)
        while player.seen["frames"] < 3:
            await player.take(60)
    assert {k: n for k, n in player.seen.items() if n and k not in ("frames", "skipped")} == {}


def test_malformed_messages(target):
    target, lobby = target
    found = asyncio.run(abuse.fuzz(target, 300, seed=1, parallel=2))
    assert found["messages"] >= 300
    assert found["answer message"] > 50
    assert not any(kind.startswith(("closed 1011", "closed 1012", "no connection")) for kind in found), found
    assert at_rest(lobby)
    asyncio.run(served(target))


def test_absurd_controls(target):
    target, _ = target
    seen = asyncio.run(abuse.absurd_controls(target, controls(40), mark=0))
    assert seen["frames"] >= 4  # one after every tenth
    wrong = ("beyond limits", "of another generation", "out of order")
    assert {k: seen[k] for k in wrong if seen[k]} == {}


def test_strangers(target):
    target, lobby = target
    found = asyncio.run(abuse.strangers(target, 60))
    assert sum(found.values()) == 60
    assert not [kind for kind in found if "let in" in kind or "HTTP 200" in kind], found
    refused = sum(lobby.counters[k] for k in ("unauthorised", "foreign_origin", "foreign_host"))
    doubled = sum(n for kind, n in found.items() if kind.endswith("400"))  # two Host headers do not get as far as to us
    assert refused + doubled == 60


@pytest.mark.parametrize("how", ["close", "reset"])
def test_clients_that_vanish_at_any_message_leave_nothing_behind(target, how):
    target, lobby = target

    async def all_of_them() -> None:
        for after in range(0, len(abuse.SCRIPT) + 1, 6):
            await abuse.vanish(target, after, how)

    asyncio.run(served(target))
    assert at_rest(lobby)
    tasks = target.metrics()["worldline_tasks"]
    asyncio.run(all_of_them())
    assert at_rest(lobby)
    assert target.metrics()["worldline_tasks"] <= tasks
    asyncio.run(served(target))


def test_a_slow_client_sees_nothing_old(target):
    target, _ = target
    seen = asyncio.run(abuse.slow(target, 3.0, 0.3, 0))
    assert seen["frames"] >= 3
    assert seen["skipped"]  # how many depends on how busy the machine is


@pytest.mark.slow
def test_every_message_boundary_three_times_over(target):
    target, lobby = target

    async def rounds() -> None:
        for _ in range(3):
            for after in range(len(abuse.SCRIPT) + 1):
                for how in ("close", "reset"):
                    await abuse.vanish(target, after, how)

    asyncio.run(served(target))
    assert at_rest(lobby)
    tasks = target.metrics()["worldline_tasks"]
    asyncio.run(rounds())
    assert at_rest(lobby)
    assert target.metrics()["worldline_tasks"] <= tasks
