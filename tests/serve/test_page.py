"""The page in a real browser, on a tiny world: everything a person can do with it."""

from __future__ import annotations

import io

import pytest
from tests.serve.browsing import PLAYING, browser, chunk_over, page, state, until, visit, wait_for
from tests.serve.conftest import running

from worldline.schema import WorldlineError
from worldline.serve.app import access_of, create_app
from worldline.serve.lobby import Rules
from worldline.stream.session import Session

__all__ = ["browser", "page"]  # fixtures
pytestmark = pytest.mark.browser
LIT = "document.querySelector('#caps [data-key={}]').classList.contains('on')"

COLOURS = """() => {
  const canvas = document.getElementById("view");
  return new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size;
}"""


def png(width: int, height: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), (180, 60, 20)).save(out, "PNG")
    return out.getvalue()


def stand(page) -> int:
    """Pause, and wait until no picture comes any more; the chunk it stands at."""
    page.keyboard.press("p")
    wait_for(page, lambda: any(m["type"] == "done" and m["of"] == "pause" for m in page.wire.heard))
    seen = -1
    while seen != len(page.wire.frames):
        seen = len(page.wire.frames)
        page.wait_for_timeout(500)
    until(page, state("paused"))
    return page.wire.frames[-1].chunk


def test_walking(page):
    assert "walk" in page.locator("#hint").inner_text()
    page.keyboard.down("w")
    until(page, LIT.format("w"))
    until(page, "parseInt(document.getElementById('a2p').textContent) >= 0")
    until(page, "parseFloat(document.getElementById('fps').textContent) > 1")
    assert page.locator("#hint").is_hidden()  # who walks needs no hint
    page.keyboard.up("w")
    walked = [f for f in page.wire.frames if f.keys & 1]
    assert walked
    assert all(f.forward == 1 for f in walked)
    box = page.locator("#caps [data-key=right]").bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    page.mouse.down()
    until(page, LIT.format("right"))
    page.mouse.up()
    until(page, "!" + LIT.format("w"))
    assert any(f.yaw > 0 for f in page.wire.frames)
    acked = {(m["generation"], m["frame"]) for m in page.wire.said if m["type"] == "ack"}
    assert acked
    assert acked <= {(f.generation, f.frame) for f in page.wire.frames}
    assert page.evaluate(COLOURS) > 20


def test_mouse_look(page):
    page.mouse.move(300, 300)
    page.locator("#view").click(position={"x": 300, "y": 200})
    until(page, "document.body.dataset.look === 'on'")
    page.mouse.move(420, 300, steps=6)
    wait_for(page, lambda: any(f.yaw > 0 for f in page.wire.frames))
    assert sum(m["mouse"][0] for m in page.wire.inputs()) > 50


def test_pause_step_and_rewind(page):
    until(page, chunk_over(3))
    chunk = stand(page)
    frame = page.wire.frames[-1].frame
    page.keyboard.press(".")  # shows what the pause held back of a chunk, or one more
    wait_for(page, lambda: page.wire.frames[-1].frame > frame and page.wire.frames[-1].frame % 4 == 0)
    assert chunk <= page.wire.frames[-1].chunk <= chunk + 1
    chunk = page.wire.frames[-1].chunk
    page.keyboard.press(".")
    until(page, chunk_over(chunk))
    page.wait_for_timeout(500)
    assert page.wire.frames[-1].chunk == chunk + 1
    page.locator("#rewind").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # one rewind for both: it waits for the keys to rest
    scene = page.wire.scene("rewind")
    assert scene["chunk"] == chunk - 1
    assert scene["paused"]
    assert [m["chunk"] for m in page.wire.said if m["type"] == "rewind"] == [chunk - 1]
    until(page, f"Number(document.getElementById('rewind').max) === {chunk - 1}")
    page.locator(".toast button").click()  # undo
    assert page.wire.scene("slot")["chunk"] == chunk + 1
    assert page.locator(".toast").count() == 0
    page.keyboard.press("Escape")
    page.keyboard.press("Space")
    until(page, PLAYING)
    until(page, chunk_over(chunk + 4))
    page.locator("#back").click()
    page.wait_for_timeout(300)
    assert [m for m in page.wire.heard if m["type"] == "scene"][-1]["chunk"] < page.wire.frames[-1].chunk + 4


def test_branches_outlive_a_reload(page):
    until(page, chunk_over(2))
    saved = stand(page)
    page.keyboard.press("Shift+Digit1")
    until(page, "document.querySelector('.slot.full img')")
    page.keyboard.press("p")
    page.keyboard.press("d")
    until(page, chunk_over(saved + 3))
    page.keyboard.press("1")
    kept = page.wire.scene("slot")["chunk"]
    assert saved <= kept <= saved + 1  # a chunk may have been under way
    page.reload()
    until(page, PLAYING)
    assert page.wire.scene("resume")["chunk"] >= kept
    assert "no longer" not in page.locator("#toasts").inner_text()
    assert page.locator(".slot.full img").count() == 1
    assert page.locator("#hint").is_hidden()  # this person has walked before
    page.locator(".slot.full button").first.click()
    assert page.wire.scene("slot")["chunk"] == kept


def test_start_prompt_and_own_picture(page):
    assert page.locator("#gallery button").count() == 2
    page.locator("#gallery button").nth(1).click()
    until(page, "document.getElementById('prompt').value === 'a cellar'")
    assert page.wire.scene("reset")["start"] == "cellar"
    steered = len(page.wire.inputs())
    page.keyboard.press("/")
    page.fill("#prompt", "")
    page.keyboard.type("rowdy words")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('apply').disabled")
    assert page.wire.last("done")["text"] == "rowdy words"
    assert len(page.wire.inputs()) == steered  # r, d and w typed into a field steer nothing
    page.set_input_files("#file", {"name": "own.png", "mimeType": "image/png", "buffer": png(97, 31)})
    until(page, "document.querySelectorAll('#gallery [aria-pressed=true]').length === 0")
    assert page.wire.scene("reset")["start"] is None
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    until(page, "document.querySelector('.toast.bad')")
    assert "no.png" in page.locator(".toast.bad").inner_text()
    page.keyboard.press("n")
    until(page, PLAYING)
    assert page.wire.said[-1]["type"] in ("ack", "ping", "reset")


def test_video_and_saved_walk(page, tmp_path):
    import av

    page.keyboard.press("v")
    until(page, "!document.getElementById('rec').hidden")
    until(page, "document.getElementById('rec-time').textContent >= '0:01'")
    with page.expect_download() as video:
        page.locator("#record").click()
    video.value.save_as(tmp_path / "walk.mp4")
    with av.open(str(tmp_path / "walk.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 12
    assert page.locator("#rec").is_hidden()
    with page.expect_download() as walk:
        page.locator("#replay-save").click()
    walk.value.save_as(tmp_path / "walk.safetensors")
    kept = page.wire.frames[-1].chunk
    page.locator("#reset").click()
    page.wire.scene("reset")
    page.set_input_files("#replay-file", tmp_path / "walk.safetensors")
    assert page.wire.scene("load")["chunk"] <= kept + 1
    page.locator("#watch").check()
    page.set_input_files("#replay-file", tmp_path / "walk.safetensors")
    wait_for(page, lambda: page.wire.last("scene")["chunk"] == 0)
    assert page.wire.last("scene")["playing"]
    until(page, chunk_over(1))
    assert page.wire.frames[-1].flags & 16  # the walk's own controls act


def test_h264_stream(page):
    if not page.locator("#set-codec option[value=h264]").count():
        pytest.skip("this browser decodes no H.264 by WebCodecs")
    page.locator("#settings-open").click()
    page.locator("#set-codec").select_option("h264")
    page.keyboard.press("Escape")
    wait_for(page, lambda: page.wire.frames[-1].codec == "h264")
    chunk = page.wire.frames[-1].chunk
    until(page, chunk_over(chunk + 4))  # decoded and shown: the slider counts what is on the screen
    video = [f for f in page.wire.frames if f.codec == "h264"]
    page.evaluate("() => document.getElementById('view').getContext('2d').clearRect(0, 0, 9999, 9999)")
    page.wait_for_timeout(300)
    assert page.evaluate(COLOURS) > 20
    assert sum(len(f.picture) for f in video[1:]) / len(video[1:]) < len(page.wire.frames[1].picture)
    assert page.wire.last("done")["of"] == "codec"


def test_walk_by_itself(page):
    page.locator("summary").click()
    page.fill("#trajectory", "d*2")
    page.keyboard.press("Enter")
    until(page, LIT.format("d"))
    until(page, "!" + LIT.format("d"))
    wait_for(page, lambda: any(m["type"] == "played" for m in page.wire.heard))
    assert page.wire.last("played")["completed"]
    page.fill("#trajectory", "fly")
    page.locator("#walk button").click()
    until(page, "document.querySelector('.toast.bad')")
    assert page.locator("#walks button").count() > 0
    page.locator("#walks button").first.click()
    until(page, "document.querySelector('#walks [aria-pressed=true]')")
    page.keyboard.press("w")  # the person's own key ends it
    until(page, "!document.querySelector('#walks [aria-pressed=true]')")


def test_the_second_waits_in_line(page, browser, address):
    second = visit(browser, address)
    until(second, state("queued"))
    assert second.locator("#veil-title").text_content() == "You are next"
    assert second.title().startswith("(1)")
    third = visit(browser, address)
    until(third, state("queued"))
    assert third.locator("#veil-title").text_content() == "Number 2 of 2 in line"
    page.locator("#leave").click()
    until(page, state("ended"))
    assert page.locator("#veil-action").text_content() == "Walk again"
    until(second, PLAYING)
    until(third, "document.getElementById('veil-title').textContent === 'You are next'")
    assert second.errors == third.errors == []
    second.context.close()
    third.context.close()
    page.locator("#veil-action").click()
    until(page, "document.body.dataset.state !== 'ended'")


def test_a_walk_taken_over_by_another_tab(page, browser, address):
    until(page, chunk_over(2))
    second = visit(browser, address)
    until(second, state("queued"))
    secret = page.evaluate("() => sessionStorage.getItem('worldline.resume')")
    second.evaluate("secret => sessionStorage.setItem('worldline.resume', secret)", secret)
    second.reload()
    until(second, PLAYING)
    until(page, state("ended"))
    assert "another tab" in page.locator("#veil-title").text_content()
    page.locator("#veil-action").click()
    until(page, PLAYING)
    until(second, state("ended"))
    second.context.close()


def test_a_world_that_fails_starts_over(page, monkeypatch):
    until(page, chunk_over(1))

    def fails(*_):
        raise WorldlineError("the model gave nonsense")

    with monkeypatch.context() as broken:
        broken.setattr(Session, "step", fails)
        until(page, state("error"))
    assert page.locator("#veil-text").text_content().startswith("The model gave nonsense")
    page.locator("#veil-action").click()
    assert page.wire.scene("rewind")["chunk"] >= 0
    until(page, PLAYING)
    with monkeypatch.context() as broken:
        broken.setattr(Session, "step", fails)
        until(page, state("error"))
    page.locator("#veil-other").click()
    assert page.wire.scene("reset")["chunk"] == 0
    until(page, PLAYING)


def test_who_stands_idle_is_asked_and_then_makes_room(browser, engine):
    app = create_app(engine, access=access_of("127.0.0.1", None), rules=Rules(idle_s=3.0))
    with running(app) as address:
        page = visit(browser, address)
        until(page, "!document.getElementById('lease').hidden")
        assert page.locator("#lease").inner_text().startswith("Are you still there?")
        until(page, state("ended"))
        assert page.locator("#veil-title").text_content() == "Nobody was walking"
        page.locator("#veil-action").click()
        until(page, PLAYING)
        assert page.locator(".toast").count() == 0
        page.context.close()


def test_by_keyboard_alone_and_by_ear(page):
    tree = page.locator("body").aria_snapshot()
    nameless = [
        line for line in tree.splitlines() if line.strip() in ("- button", "- slider", "- textbox", "- checkbox")
    ]
    assert nameless == [], tree
    assert page.locator("#announce").inner_text() == "Live"
    steered = len(page.wire.inputs())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pause"
    page.keyboard.press("w")
    assert len(page.wire.inputs()) == steered  # letters are the world's only while it has the focus
    page.keyboard.press("Enter")
    until(page, state("paused"))
    assert page.locator("#pause").get_attribute("aria-label") == "Go on"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "view"
    page.keyboard.press("?")
    until(page, "document.getElementById('help').open")
    page.keyboard.press("w")
    assert len(page.wire.inputs()) == steered
    page.keyboard.press("Escape")
    until(page, "!document.getElementById('help').open && document.activeElement.id === 'view'")
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.getElementById('veil')).transitionDuration") == "0s"


GAMEPAD = """
window.pad = {connected: true, id: "Test Pad (STANDARD GAMEPAD)", axes: [0, 0, 0, 0],
              buttons: Array.from({length: 17}, () => ({pressed: false}))};
navigator.getGamepads = () => [window.pad];
"""


def test_sticks_of_fingers_and_gamepads(browser, address):
    page = visit(browser, address, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    until(page, PLAYING)
    box = page.locator("[data-stick=move]").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - box["height"])
    wait_for(page, lambda: page.wire.inputs() and page.wire.inputs()[-1]["axes"] == [0, -1, 0, 0])
    wait_for(page, lambda: page.wire.frames[-1].forward > 0.9)
    page.mouse.up()
    wait_for(page, lambda: page.wire.inputs()[-1]["axes"] == [0, 0, 0, 0])
    wait_for(page, lambda: page.wire.frames[-1].forward == 0)
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out of a phone

    page.evaluate(GAMEPAD)
    page.evaluate("dispatchEvent(Object.assign(new Event('gamepadconnected'), {gamepad: window.pad}))")
    until(page, "document.querySelector('.toast')?.textContent.startsWith('Test Pad:')")
    page.evaluate("window.pad.axes = [0.05, 0, 0.8, 0]")
    # What trembles at rest is no wish.
    wait_for(page, lambda: page.wire.inputs()[-1]["axes"] == [0, 0, 0.8, 0])
    page.evaluate("window.pad.axes = [0, 0, 0, 0]; window.pad.buttons[9].pressed = true")
    until(page, state("paused"))
    assert page.errors == []
    page.context.close()
