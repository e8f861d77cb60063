"""The server over real sockets: frames, input, resets, slow and rude clients, the one seat."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest
import simplejpeg
import torch
from tests.tiny_world import HEIGHT, WIDTH
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from worldline.schema import WorldlineError
from worldline.serve import app as app_module
from worldline.serve.app import listen
from worldline.serve.player import CHUNKS_AHEAD
from worldline.serve.protocol import Frame


class Client:
    """A polite client: acknowledges every frame unless told otherwise."""

    def __init__(self, socket) -> None:
        self.socket, self.said, self.seq = socket, [], 0

    def say(self, kind: str, **fields) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def press(self, *keys: str) -> int:
        self.seq += 1
        self.say("input", seq=self.seq, keys=list(keys), mouse_dx=0, t_client=0.0)
        return self.seq

    def frame(self, ack: bool = True, timeout: float = 10) -> Frame:
        """The next picture; text messages on the way are kept in `said`."""
        while True:
            payload = self.socket.recv(timeout=timeout)
            if isinstance(payload, str):
                self.said.append(json.loads(payload))
                continue
            frame, server_ms = Frame.unpack(payload)
            assert server_ms > 0
            if ack:
                self.say("ack", generation=frame.generation, frame=frame.frame)
            return frame

    def drain(self, timeout: float | None = 10, ack: bool = False) -> list[Frame]:
        """Frames until none comes for `timeout` seconds; a closed connection raises."""
        frames = []
        while True:
            try:
                frames.append(self.frame(ack=ack, timeout=timeout))
            except TimeoutError:
                return frames

    def text(self, kind: str) -> dict:
        while not any(m["type"] == kind for m in self.said):
            payload = self.socket.recv(timeout=10)
            if isinstance(payload, str):
                self.said.append(json.loads(payload))
        return next(m for m in self.said if m["type"] == kind)


@contextmanager
def client(address: str, **options):
    deadline = time.monotonic() + 10
    while True:
        with connect(f"ws://{address}/ws", **options) as socket:
            first = json.loads(socket.recv(timeout=10))
            if first["type"] == "busy" and time.monotonic() < deadline:
                continue  # the client of the test before is still being seen off
            c = Client(socket)
            c.said.append(first)
            yield c
            return


def get(address: str, path: str):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
        return response.read()


def test_the_facts_of_the_world(address):
    assert json.loads(get(address, "/healthz"))["status"] == "ok"
    assert json.loads(get(address, "/api/spec"))["frames_per_chunk"] == 4
    starts = json.loads(get(address, "/api/starts"))
    assert [s["name"] for s in starts] == ["hall", "cellar"]
    assert simplejpeg.decode_jpeg(get(address, starts[0]["thumbnail"])).shape == (HEIGHT, WIDTH, 3)
    assert b"worldline" in get(address, "/")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(address, "/api/starts/attic.jpg")


def test_frames_come_in_order_and_are_pictures(address):
    with client(address) as c:
        frames = [c.frame() for _ in range(13)]
    assert c.said[0]["type"] == "hello"
    assert [f.frame for f in frames] == list(range(13))
    assert [f.chunk for f in frames] == [0] + [1] * 4 + [2] * 4 + [3] * 4
    assert [f.first for f in frames[1:]] == [True, False, False, False] * 3
    assert {f.generation for f in frames} == {1}
    assert all(simplejpeg.decode_jpeg(f.jpeg).shape == (HEIGHT, WIDTH, 3) for f in frames)
    assert frames[1].compute_ms > 0


def test_input_comes_back_in_the_frames_it_made(address):
    with client(address) as c:
        c.frame()
        seq = c.press("KeyW", "KeyE")
        frames = [c.frame() for _ in range(16)]
        answered = [f for f in frames if f.seq == seq]
        assert answered
        assert answered[0].first  # an input acts from the beginning of a chunk
        assert {f.keys for f in answered} == {0b100001}
        seq = c.press()
        frames = [c.frame() for _ in range(16)]
        assert next(f.keys for f in frames if f.seq == seq) == 0


def test_a_reset_leaves_the_old_world_behind(address):
    with client(address) as c:
        first = c.frame()
        for _ in range(6):
            c.frame()
        c.say("reset", start="cellar")
        while (f := c.frame()).generation == 1:
            pass
        assert (f.generation, f.frame, f.chunk) == (2, 0, 0)
        assert [c.frame().frame for _ in range(6)] == list(range(1, 7))
        assert c.said[-1] == {"type": "reset", "generation": 2, "prompt": "a cellar"}
        assert f.jpeg != first.jpeg


def test_the_same_reset_gives_the_same_world(address):
    with client(address) as c:
        walks, generation = [], c.frame().generation
        for _ in range(2):
            c.say("reset", start="hall", seed=5)
            while (f := c.frame()).generation == generation:
                pass
            generation = f.generation
            walks.append([c.frame().jpeg for _ in range(8)])
    assert walks[0] == walks[1]


def picture(width: int, height: int, kind: str = "PNG") -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), (180, 60, 20)).save(out, kind)
    return base64.b64encode(out.getvalue()).decode()


def test_a_picture_of_ones_own_is_a_start(address):
    with client(address) as c:
        c.frame()
        c.say("reset", image=picture(WIDTH, HEIGHT, "JPEG"), prompt="a red room")
        while c.frame().generation == 1:
            pass
        assert c.said[-1]["prompt"] == "a red room"
        for image, message in (
            (picture(WIDTH, HEIGHT, "BMP"), "JPEG or a PNG"),
            (picture(WIDTH + 8, HEIGHT), "this world takes"),
            (picture(WIDTH, HEIGHT)[:80], "not readable"),
        ):
            c.said.clear()
            c.say("reset", image=image)
            assert message in c.text("error")["message"]
        assert c.frame().generation == 2  # and the walk goes on


def test_a_slow_client_slows_the_world_and_fills_no_queue(address):
    with client(address) as c:
        frames = c.drain(timeout=1.5)
        assert 4 < len(frames) <= (CHUNKS_AHEAD + 1) * 4 + 1
        c.say("ack", generation=1, frame=frames[-1].frame)
        assert c.frame().frame == frames[-1].frame + 1  # not a frame was lost
        c.say("ack", generation=1, frame=10**6)  # nobody has seen the future
        assert [c.frame(ack=False).frame for _ in range(4)]


def test_pause_and_prompt(address):
    with client(address) as c:
        c.frame()
        c.say("pause", on=True)
        assert len(c.drain(timeout=1.0, ack=True)) < 12
        c.say("prompt", text="a bright cave")
        assert c.text("prompt")["text"] == "a bright cave"
        c.say("pause", on=False)
        assert c.frame().generation == 1


def test_garbage_is_answered_and_play_goes_on(address):
    with client(address) as c:
        c.frame()
        for rubbish in ("", "{", "[]", '{"type": 1}', '{"type": "input", "seq": "a"}', b"\x00\x01"):
            c.socket.send(rubbish)
        c.say("reset", start="attic")  # a place that is not there
        errors = []
        while len(errors) < 7:
            c.frame()
            errors = [m for m in c.said if m["type"] == "error"]
        assert [e["code"] for e in errors] == ["message"] * 6 + ["request"]
        assert "expected one of" in errors[-1]["message"]
        last = c.frame().frame
        assert c.frame().frame == last + 1
    assert json.loads(get(address, "/healthz"))["counters"]["bad_messages"] == 6


@pytest.mark.parametrize("size", [app_module.MAX_MESSAGE + 1, 10 * app_module.MAX_MESSAGE])
def test_oversized_messages_end_the_connection_only(address, size):
    with client(address) as c:
        c.socket.send("x" * size)
        with pytest.raises(ConnectionClosed):
            c.drain()
    with client(address) as c:
        assert c.frame().frame == 0


def test_endless_garbage_is_shown_the_door(address, monkeypatch):
    monkeypatch.setattr(app_module, "MAX_BAD_MESSAGES", 5)
    with client(address) as c:
        for _ in range(6):
            c.socket.send("rubbish")
        with pytest.raises(ConnectionClosed) as closed:
            c.drain()
    assert closed.value.rcvd.code == 1008


def test_there_is_one_seat(address):
    with client(address) as c:
        c.frame()
        with connect(f"ws://{address}/ws") as second:
            assert json.loads(second.recv(timeout=10))["type"] == "busy"
            with pytest.raises(ConnectionClosed) as closed:
                second.recv(timeout=10)
        assert closed.value.rcvd.code == 1013
        last = c.frame().frame
        assert c.frame().frame == last + 1
        assert json.loads(get(address, "/healthz"))["playing"]


def test_clients_that_vanish_leave_nothing_behind(address):
    threads = None
    for _ in range(6):
        with client(address) as c:
            c.frame()
            c.socket.socket.close()  # no closing handshake
        threads = threads or threading.active_count()
    with client(address) as c:
        assert [c.frame().frame for _ in range(5)] == list(range(5))
    assert threading.active_count() <= threads + 1


def test_a_broken_world_is_told_and_a_reset_mends_it(address, engine):
    bias = engine.model.proj_out.bias
    kept = bias.detach().clone()
    with client(address) as c:
        c.frame()
        try:
            with torch.no_grad():
                bias[0] = float("nan")
            assert "non-finite" in c.text("error")["message"]
        finally:
            with torch.no_grad():
                bias.copy_(kept)
        c.say("reset")
        while c.frame().generation != 2:
            pass
        assert [c.frame().frame for _ in range(5)] == [1, 2, 3, 4, 5]


def test_other_sites_and_other_names_are_refused(address):
    from websockets.exceptions import InvalidStatus

    for options in ({"origin": "http://evil.example"}, {"additional_headers": {"Host": "evil.example"}}):
        with pytest.raises(InvalidStatus), connect(f"ws://{address}/ws", **options):
            pass
    with client(address, origin=f"http://{address}") as c:
        assert c.frame().frame == 0


def test_a_taken_port_is_named():
    holder = listen("127.0.0.1", 0)
    port = holder.getsockname()[1]
    with pytest.raises(WorldlineError, match=f"port {port} .* is taken"):
        listen("127.0.0.1", port)
    holder.close()
