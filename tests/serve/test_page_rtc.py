"""The page over WebRTC in a real browser: video frames, keys over the channel, and the WebSocket where it cannot be."""

from __future__ import annotations

import asyncio

import pytest
from tests.serve.browsing import PLAYING, browser, until, visit, wait_for
from tests.serve.conftest import running
from tests.serve.test_page import COLOURS

from worldline.serve.app import access_of, create_app
from worldline.serve.signalling import peers_on

pytest.importorskip("aiortc", reason="aiortc is an extra: pip install 'worldline[webrtc]'")
__all__ = ["browser"]  # fixtures
pytestmark = [pytest.mark.browser, pytest.mark.slow]
NOTE = "document.getElementById('transport-note').textContent"


@pytest.fixture
def app(engine):
    return create_app(engine, access=access_of("127.0.0.1", None), webrtc=peers_on("127.0.0.1"))


def over_the_track(page) -> list:
    return [f for f in page.wire.frames if f.codec == "track"]


def test_a_walk_over_webrtc(browser, address):
    page = visit(browser, address, path="/?transport=webrtc")
    until(page, PLAYING)
    until(page, f"{NOTE} === 'WebRTC is in use.'")
    wait_for(page, lambda: len(over_the_track(page)) > 8)
    first, jpegs = over_the_track(page)[0], sum(f.codec == "jpeg" for f in page.wire.frames)
    # What the canvas shows are pictures of the track: the page acknowledges over the channel, so the server goes on.
    shown = "document.getElementById('rewind').max"
    before = int(page.evaluate(f"() => {shown}"))
    until(page, f"{shown} > {before + 6}")
    page.keyboard.down("e")
    turned = wait_for(page, lambda: next((f for f in over_the_track(page) if f.yaw), None))
    assert turned.frame > first.frame
    until(page, "document.querySelector('#caps [data-key=right]').classList.contains('on')")
    page.keyboard.up("e")
    sent = [m for m in page.wire.said if m["type"] in ("ack", "input")]
    before = int(page.evaluate(f"() => {shown}"))
    until(page, f"{shown} > {before + 2}")
    assert page.evaluate(COLOURS) > 20
    later = [m for m in page.wire.said if m["type"] in ("ack", "input")]
    assert later == sent  # neither goes over the WebSocket any more
    assert sum(f.codec == "jpeg" for f in page.wire.frames) == jpegs
    # And back, by the menu.
    page.locator("#settings-open").click()
    page.locator("#set-transport").select_option("websocket")
    wait_for(page, lambda: sum(f.codec == "jpeg" for f in page.wire.frames) > jpegs + 4)
    until(page, f"{NOTE} === ''")
    assert page.errors == []
    page.context.close()


@pytest.mark.parametrize("why", ["not offered", "no WebRTC", "no way"])
def test_the_websocket_where_webrtc_cannot_be(browser, engine, app, why):
    app = create_app(engine, access=access_of("127.0.0.1", None)) if why == "not offered" else app
    scripts = {
        "no WebRTC": "delete window.RTCPeerConnection",
        # Nobody answers at the candidates that the server names.
        "no way": "const real = RTCPeerConnection.prototype.setRemoteDescription;"
        "RTCPeerConnection.prototype.setRemoteDescription = function (d) {"
        "  return real.call(this, { type: d.type, sdp: d.sdp.replace(/ice-pwd:.*/g, 'ice-pwd:' + 'x'.repeat(24)) }); };",
    }
    said = {"not offered": "does not offer it", "no WebRTC": "no WebRTC", "no way": "reached over UDP"}[why]
    with running(app) as address:
        page = visit(browser, address, path="/?transport=webrtc", script=scripts.get(why))
        until(page, PLAYING)
        until(page, f"{NOTE}.includes('{said}')")
        assert said in page.locator("#toasts").inner_text()
        count = len(page.wire.frames)
        wait_for(page, lambda: len(page.wire.frames) > count + 4)
        assert {f.codec for f in page.wire.frames} == {"jpeg"}
        assert page.errors == []
        page.context.close()


def test_a_track_that_breaks_is_replaced(browser, address, app):
    page = visit(browser, address, path="/?transport=webrtc")
    until(page, f"{NOTE} === 'WebRTC is in use.'")
    wait_for(page, lambda: len(over_the_track(page)) > 2)
    (player,) = app.state.lobby.live
    peer = player.connection.peer
    asyncio.run_coroutine_threadsafe(peer.close(), next(iter(peer._tasks)).get_loop()).result(60)
    until(page, f"{NOTE}.includes('broke') || {NOTE}.includes('ended')")
    count = len(page.wire.frames)
    wait_for(page, lambda: len([f for f in page.wire.frames[count:] if f.codec == "jpeg"]) > 3)
    assert page.errors == []
    page.context.close()
