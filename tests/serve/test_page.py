"""The page in a real browser: pictures arrive, keys go out and come back, the figures are shown."""

from __future__ import annotations

import io
import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium")
ARGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


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


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"http://{address}/")
    yield page
    context.close()


def png(width: int, height: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), (180, 60, 20)).save(out, "PNG")
    return out.getvalue()


def wait(page, condition: str) -> None:
    page.wait_for_function(condition, timeout=20_000)


@pytest.mark.browser
def test_walking_in_the_page(page, tmp_path):
    wait(page, "document.getElementById('state').dataset.state === 'playing'")
    wait(page, "parseFloat(document.getElementById('fps').textContent) > 1")
    page.keyboard.down("w")
    wait(page, "document.querySelector('[data-key=w]').classList.contains('on')")
    wait(page, "parseInt(document.getElementById('a2p').textContent) >= 0")
    page.screenshot(path=str(tmp_path / "page.png"))
    page.keyboard.up("w")
    box = page.locator("#keys [data-key=right]").bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    page.mouse.down()
    wait(page, "document.querySelector('[data-key=right]').classList.contains('on')")
    page.mouse.up()
    wait(page, "!document.querySelector('[data-key=w]').classList.contains('on')")
    painted = page.evaluate(
        "() => { const c = document.getElementById('view');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return new Set(d).size }"
    )
    assert painted > 20
    assert page.errors == []


@pytest.mark.browser
def test_start_over_scene_and_gallery(page):
    wait(page, "parseInt(document.getElementById('frame').textContent) > 8")
    page.keyboard.press("r")
    wait(page, "parseInt(document.getElementById('frame').textContent) < 8")
    assert page.locator("#gallery button").count() == 2
    page.locator("#gallery button").nth(1).click()
    wait(page, "document.getElementById('prompt').value === 'a cellar'")
    page.fill("#prompt", "rowdy words")
    page.keyboard.press("Enter")
    wait(page, "parseInt(document.getElementById('frame').textContent) > 4")
    assert page.locator("#prompt").input_value() == "rowdy words"  # r, d and w typed into a field steer nothing
    page.set_input_files("#file", {"name": "own.png", "mimeType": "image/png", "buffer": png(97, 31)})
    wait(page, "document.querySelectorAll('#gallery [aria-pressed=true]').length === 0")
    wait(page, "parseInt(document.getElementById('frame').textContent) < 4")
    assert page.locator("#state").get_attribute("data-state") != "error"
    page.keyboard.press("p")
    wait(page, "document.getElementById('state').dataset.state === 'paused'")
    assert page.errors == []


@pytest.mark.browser
def test_a_second_page_is_told_that_the_seat_is_taken(page):
    wait(page, "document.getElementById('state').dataset.state === 'playing'")
    second = page.context.new_page()
    second.goto(page.url)
    wait(second, "document.getElementById('state').dataset.state === 'busy'")
    assert "one seat" in second.locator("#veil-text").inner_text()
    page.close()
    wait(second, "document.getElementById('state').dataset.state === 'playing'")
