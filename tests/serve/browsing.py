"""A page in a real Chromium, and everything that goes over its WebSocket."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from worldline.serve.protocol import Frame

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
PATIENCE_MS = 60_000  # a condition that never comes fails the test; a slow machine does not


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("WORLDLINE_REQUIRE_BROWSER"):
            pytest.fail("WORLDLINE_REQUIRE_BROWSER is set and no chromium is installed")
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


class Wire:
    """What a page's sockets carried: `frames`, `heard` from the server, `said` to it."""

    def __init__(self, page) -> None:
        self.page = page
        self.frames: list[Frame] = []
        self.heard: list[dict] = []
        self.said: list[dict] = []
        page.on("websocket", self._open)

    def _open(self, socket) -> None:
        socket.on("framereceived", self._received)
        socket.on("framesent", lambda payload: self.said.append(json.loads(payload)))

    def _received(self, payload) -> None:
        if isinstance(payload, str):
            self.heard.append(json.loads(payload))
        else:
            self.frames.append(Frame.unpack(payload)[0])

    def last(self, kind: str) -> dict:
        """The newest message of a kind from the server."""
        return next(m for m in reversed(self.heard) if m["type"] == kind)

    def inputs(self) -> list[dict]:
        return [m for m in self.said if m["type"] == "input"]

    def scene(self, cause: str) -> dict:
        """Wait for a scene of this cause to be the newest one."""

        def newest() -> dict:
            return next((m for m in reversed(self.heard) if m["type"] == "scene"), {"cause": None})

        wait_for(self.page, lambda: newest()["cause"] == cause, f"a scene of cause {cause}")
        return newest()


def visit(browser, address: str, path: str = "/", script: str | None = None, **context):
    """A page of its own context at the server, with its `wire` and its script `errors`. script: run before its own."""
    options = {"viewport": {"width": 1180, "height": 800}, "accept_downloads": True, **context}
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.wire, page.errors = Wire(page), []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    if script is not None:
        page.add_init_script(script)
    page.goto(f"http://{address}{path}")
    return page


@pytest.fixture
def page(browser, address) -> Iterator:
    page = visit(browser, address)
    until(page, PLAYING)
    yield page
    assert page.errors == []
    page.context.close()


def until(page, condition: str) -> None:
    """Wait for a JavaScript condition. By asking again: the page's own policy forbids the eval of wait_for_function."""
    wait_for(page, lambda: page.evaluate(f"() => Boolean({condition})"), condition)


def wait_for(page, holds: Callable[[], Any], what: str = "what was waited for") -> Any:
    """Wait for something of Python's, while the page's events go on; what it was."""
    for _ in range(PATIENCE_MS // 50):
        if found := holds():
            return found
        page.wait_for_timeout(50)
    state = page.evaluate("() => [document.body.dataset.state, document.getElementById('veil').innerText]")
    raise AssertionError(f"{what}: not in {PATIENCE_MS / 1000:.0f} s; the page is {state}; {page.errors}")


def state(name: str) -> str:
    return f"document.body.dataset.state === '{name}'"


PLAYING = state("playing")


def chunk_over(n: int) -> str:
    """The walk has more than n chunks."""
    return f"Number(document.getElementById('rewind').max) > {n}"
