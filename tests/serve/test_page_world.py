"""The page on the bundled world, served by a process of its own: the view does as it is told, and a dead server comes back.

Set WORLDLINE_SCREENSHOTS to a directory to keep a picture of every state.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from tests.serve.browsing import PLAYING, browser, chunk_over, state, until, visit, wait_for

from worldline.evaluate.yaw import expansion_between, yaw_between
from worldline.recipes.assets import bundled
from worldline.serve.app import listen
from worldline.stream.world import WorldConfig

__all__ = ["browser"]
pytestmark = [pytest.mark.browser, pytest.mark.slow]


class Server:
    """`worldline play` on one port, which can be killed and started again."""

    def __init__(self) -> None:
        probe = listen("127.0.0.1", 0)
        self.port = probe.getsockname()[1]
        probe.close()
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "worldline.cli", "play", "--no-browser", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://{self.address}/healthz", timeout=1)
                return
            except OSError:
                assert self.process.poll() is None, "the server ended before it listened"
                time.sleep(0.05)
        raise AssertionError("the server does not listen after a minute")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server():
    server = Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def page(browser, server, shoot):
    page = visit(browser, server.address)
    until(page, PLAYING)
    yield page
    page.locator("#leave").click()
    until(page, state("ended"))
    assert page.errors == []
    page.context.close()


@pytest.fixture(scope="session")
def shoot(tmp_path_factory):
    """shoot(page, name): keep what the page looks like."""
    root = Path(os.environ.get("WORLDLINE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))

    def take(page, name: str) -> None:
        page.screenshot(path=str(root / f"{name}.png"))

    return take


def walked(page, seconds: float, *keys: str) -> np.ndarray:
    """Hold keys for a while; the pictures the server sent while they acted, uint8 [F, H, W, 3]."""
    page.wait_for_timeout(500)
    first = len(page.wire.frames)
    for key in keys:
        page.keyboard.down(key)
    page.wait_for_timeout(1000 * seconds)
    for key in keys:
        page.keyboard.up(key)
    page.wait_for_timeout(500)
    held = {"w": 1, "ArrowLeft": 16, "ArrowRight": 32}
    bits = sum(held[key] for key in keys)
    newest = page.wire.frames[-1].generation
    frames = [f for f in page.wire.frames[first:] if f.keys == bits and f.generation == newest]
    assert all(f.codec == "jpeg" for f in frames)
    return np.stack([simplejpeg.decode_jpeg(f.picture) for f in frames])


def test_the_view_moves_as_the_control_says(page, shoot):
    config = WorldConfig.read(bundled("world"))
    K = np.array(config.K)
    shoot(page, "first-look")

    stood = walked(page, 1.5)
    assert len(stood) >= 12
    turned = {}
    for key, sign in (("ArrowRight", 1), ("ArrowLeft", -1)):
        frames = walked(page, 2.0, key)
        turned[key] = yaw_between(frames, K).mean()
        assert len(frames) >= 16
        assert 0.5 < sign * turned[key] / config.turn_deg_per_frame < 1.5, turned
    page.keyboard.press("r")
    page.wire.scene("reset")
    page.keyboard.down("w")
    page.wait_for_timeout(900)
    shoot(page, "walking")
    page.keyboard.up("w")
    page.keyboard.press("r")
    ahead = walked(page, 2.0, "w")
    yaw = yaw_between(ahead, K)
    grown, at_rest = expansion_between(ahead, K, yaw).mean(), expansion_between(stood, K, yaw_between(stood, K)).mean()
    assert len(ahead) >= 16
    assert grown > max(0.004, 3 * abs(at_rest))
    assert abs(yaw.mean()) < 0.5


def test_every_state_in_light_dark_and_on_a_phone(browser, server, page, shoot):
    page.keyboard.press("p")
    until(page, state("paused"))
    page.keyboard.press("Shift+Digit1")
    until(page, "document.querySelector('.slot.full img')")
    shoot(page, "paused")
    page.keyboard.press("?")
    shoot(page, "help")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.id === 'view'")
    page.locator("#settings-open").click()
    shoot(page, "settings")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.id === 'view'")
    page.keyboard.press("p")
    until(page, PLAYING)
    page.keyboard.press("v")
    page.keyboard.down("d")
    until(page, "document.getElementById('rec-time').textContent >= '0:01'")
    shoot(page, "recording")
    page.keyboard.up("d")
    with page.expect_download():
        page.keyboard.press("v")
    looks = {
        "dark": {"color_scheme": "dark"},
        "phone": {
            "has_touch": True,
            "is_mobile": True,
            "viewport": {"width": 390, "height": 844},
            "device_scale_factor": 2,
        },
    }
    for name, look in looks.items():
        second = visit(browser, server.address, **look)
        until(second, state("queued"))
        second.wait_for_timeout(400)
        shoot(second, f"queued-{name}")
        page.locator("#leave").click()
        until(page, state("ended"))
        shoot(page, "ended")
        until(second, PLAYING)
        until(second, chunk_over(2))
        shoot(second, f"playing-{name}")
        assert second.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        second.locator("#leave").click()
        until(second, state("ended"))
        second.context.close()
        page.locator("#veil-action").click()
        until(page, PLAYING)


def test_a_prompt_and_a_rewind_on_the_way(page):
    until(page, chunk_over(4))
    page.fill("#prompt", "a hall with violet panels and a blue board floor, next to a grey room")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('apply').disabled")
    assert page.wire.last("done")["text"].startswith("a hall with violet")
    page.keyboard.down("ArrowRight")
    until(page, chunk_over(12))
    page.keyboard.up("ArrowRight")
    page.keyboard.press("Backspace")
    back = page.wire.scene("rewind")
    assert 4 <= back["chunk"] < 12
    assert back["prompt"].startswith("a hall with violet")
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    wait_for(page, lambda: page.wire.last("scene")["chunk"] == 0)
    assert not page.wire.last("scene")["prompt"].startswith("a hall with violet")  # it is as it was then


def test_a_killed_server_is_waited_for(page, server, shoot):
    page.locator("#gallery button").nth(2).click()
    start = page.wire.scene("reset")["start"]
    until(page, chunk_over(3))
    server.kill()
    until(page, state("lost"))
    page.wait_for_timeout(300)
    shoot(page, "lost")
    assert page.locator("#veil-action").text_content() == "Try now"
    server.start()
    until(page, f"({state('loading')}) || ({PLAYING})")
    shoot(page, "loading")
    until(page, PLAYING)
    assert "no longer has your walk" in page.locator("#toasts").inner_text()
    assert page.wire.last("scene")["start"] == start  # the new walk begins where the old one did
    page.keyboard.press("w")
    wait_for(page, lambda: page.wire.frames[-1].keys & 1 or any(f.keys & 1 for f in page.wire.frames[-8:]))
