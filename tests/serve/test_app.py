"""The server over real sockets: a walk and its commands, rude clients, files, and the HTTP interface."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib

import av
import numpy as np
import pytest
import simplejpeg
import torch
from tests.serve.conftest import running
from tests.serve.walker import WAIT, Walker, agree, pictures, walker, without_gap
from tests.tiny_world import HEIGHT, WIDTH
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from worldline.schema import WorldlineError
from worldline.serve import app as app_module
from worldline.serve import protocol
from worldline.serve.app import create_app, listen
from worldline.serve.spool import Folder
from worldline.stream.stages import begins


def http(address: str, path: str, method: str = "GET", body: bytes | None = None, **headers) -> tuple[int, bytes, dict]:
    """(status, body, headers); refusals are no exceptions."""
    names = {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(f"http://{address}{path}", body, names, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def upload(address: str, w: Walker, kind: str, body: bytes) -> tuple[int, dict]:
    status, answer, _ = http(
        address, f"/api/uploads?kind={kind}", "POST", body, worldline_session=w.live()["resume"],
        content_type="application/octet-stream",
    )  # fmt: skip
    return status, json.loads(answer)


def picture(width: int, height: int, kind: str = "PNG", colour=(180, 60, 20)) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, kind)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    )


def test_the_facts_of_the_world(address):
    with walker(address) as w:
        w.frame()
    assert json.loads(http(address, "/healthz")[1]) == {"status": "ok"}
    assert json.loads(http(address, "/readyz")[1])["ready"]
    assert json.loads(http(address, "/api/world")[1])["frames_per_chunk"] == 4
    starts = json.loads(http(address, "/api/starts")[1])
    assert [s["name"] for s in starts] == ["hall", "cellar"]
    assert simplejpeg.decode_jpeg(http(address, starts[0]["thumbnail"])[1]).shape == (HEIGHT, WIDTH, 3)
    _, page, headers = http(address, "/")
    assert b"worldline" in page
    assert headers["cache-control"] == "no-cache"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert http(address, "/api/starts/attic.jpg")[0] == 404
    metrics = http(address, "/metrics")[1].decode()
    assert "worldline_seats_ready 1.0" in metrics
    assert 'worldline_events_total{kind="visits"} 1.0' in metrics
    document = json.loads(http(address, "/openapi.json")[1])
    assert {"/healthz", "/readyz", "/metrics", "/api/uploads", "/api/files/{file}"} <= set(document["paths"])


def test_frames_come_in_order_and_are_pictures(address):
    with walker(address) as w:
        frames = [w.frame() for _ in range(13)]
    kinds = [m["type"] + m.get("state", "") for m in w.said]
    assert [k for k in kinds if k not in ("stateloading", "statequeued")] == ["hello", "statelive", "scene"]
    assert frames[0].frame == 0
    assert without_gap(frames)
    assert all(f.chunk == (f.frame + 3) // 4 for f in frames)
    assert all(f.first == (f.frame % 4 == 1) for f in frames[1:])
    assert [bool(f.flags & protocol.STILL) for f in frames] == [True] + [False] * 12
    assert {f.generation for f in frames} == {1}
    assert all(simplejpeg.decode_jpeg(f.picture).shape == (HEIGHT, WIDTH, 3) for f in frames)
    assert frames[1].compute_ms > 0


def test_input_comes_back_in_the_frames_it_made(address):
    with walker(address) as w:
        w.frame()
        seq = w.press("KeyW", "KeyE")
        frames = [w.frame() for _ in range(16)]
        answered = [f for f in frames if f.seq == seq]
        assert answered
        assert {f.keys for f in answered} == {0b100001}
        assert {(f.forward, f.right, f.yaw) for f in answered} == {(1.0, 0.0, 2.0)}
        seq = w.press(axes=(1.0, 0.0, -1.0, 0.0))
        answered = [f for f in (w.frame() for _ in range(16)) if f.seq == seq]
        assert {(f.forward, f.right, f.yaw, f.keys) for f in answered} == {(0.0, 1.0, -3.0, 0)}
        seq = w.press()
        assert next(f.keys for f in (w.frame() for _ in range(16)) if f.seq == seq) == 0


def test_newer_input_reaches_frames_that_are_not_yet_due(address):
    """An event in the middle of a chunk's time shows before the next chunk, where the machine is quick enough."""
    with walker(address) as w:
        for _ in range(20):
            w.frame()
        inside = 0
        for turn in range(12):
            while not w.frame().first:
                pass
            seq = w.press("KeyW" if turn % 2 else "KeyS")
            while (f := w.frame()).seq != seq:
                pass
            inside += not f.first
            assert f.keys == (1 if turn % 2 else 4)
        assert without_gap(w.got)
        slow = sum(f.compute_ms > 25 for f in w.got if f.first)
        assert inside or slow > 5  # a chunk that takes a frame's time cannot be made again


def test_h264_is_one_picture_a_message_and_decodes(address):
    with walker(address, {"codecs": ["av1", "h264", "jpeg"]}) as w:
        assert (w.text("hello")["codec"], w.text("hello")["h264"]) == ("h264", "avc1.42C01E")
        decoder = av.CodecContext.create("h264", "r")
        frames, pictures = [w.frame() for _ in range(9)], []
        for f in frames:
            decoded = decoder.decode(av.Packet(f.picture))
            assert len(decoded) == 1  # nothing is held back
            pictures.append(decoded[0].to_ndarray(format="rgb24"))
        assert {f.codec for f in frames} == {"h264"}
        assert [bool(f.flags & protocol.KEY) for f in frames] == [True] + [False] * 8
        w.ask("keyframe")
        while not (f := w.frame()).flags & protocol.KEY:
            pass
        answer = w.ask("codec", codec="jpeg")
        assert answer["type"] == "done"
        while w.frame().codec != "jpeg":
            pass
        w.ask("reset")
        still = next(f for f in (w.frame() for _ in range(60)) if f.generation == 2)
        whole = simplejpeg.decode_jpeg(still.picture).astype(int)
        # The same start picture by both codecs: H.264 halves the colours of a picture of noise, its brightness is close.
        assert np.abs(whole.mean(-1) - pictures[0].astype(int).mean(-1)).mean() < 12


def test_a_reset_leaves_the_old_world_behind(address):
    with walker(address) as w:
        first = w.frame()
        for _ in range(6):
            w.frame()
        w.say("reset", start="cellar", id=9)
        while (f := w.frame()).generation == 1:
            pass
        scene = w.scene(2)
        assert (scene["cause"], scene["prompt"], scene["start"], scene["slots"]) == ("reset", "a cellar", "cellar", [0])
        assert (f.generation, f.frame, f.chunk) == (2, 0, 0)
        assert f.flags & protocol.STILL
        assert without_gap([f] + [w.frame() for _ in range(6)])
        assert f.picture != first.picture
        assert w.text("done") == {"type": "done", "id": 9, "of": "reset"}


def test_the_same_reset_gives_the_same_world(address):
    with walker(address) as w:
        walks, generation = [], w.frame().generation
        for _ in range(2):
            w.say("reset", start="hall", seed=5)
            while (f := w.frame()).generation == generation:
                pass
            generation = f.generation
            walks.append(pictures([w.frame() for _ in range(12)]))
    assert agree(*walks) >= 4


def test_no_frame_of_an_older_generation_comes_after_its_end(address):
    with walker(address) as w:
        w.frame()
        for generation in range(2, 12):
            w.say("reset", seed=generation)
            w.scene(generation)
            seen = [w.frame(ack=generation % 2 == 0) for _ in range(3 if generation % 2 == 0 else 1)]
            assert {f.generation for f in seen} == {generation}
            w.said.clear()


def test_rewind_goes_back_and_forward_again_alike(address):
    with walker(address) as w:
        frames = [w.frame() for _ in range(13)]
        assert w.ask("pause")["type"] == "done"
        assert w.ask("rewind", chunk=1)["type"] == "done"
        scene = w.scene(2)
        assert (scene["cause"], scene["chunk"], scene["frame"], scene["paused"]) == ("rewind", 1, 4, True)
        still = w.frame()
        assert (still.generation, still.frame) == (2, 4)
        assert agree(pictures([still]), pictures(frames)) <= 1
        assert w.drain(0.3) == []  # paused
        w.say("pause", on=False)
        assert agree(pictures([w.frame() for _ in range(8)]), pictures(frames)) >= 2
        assert w.ask("rewind", frame=6)["type"] == "done"
        assert w.scene(3)["chunk"] == 2
        assert w.ask("slot_go", slot=0)["type"] == "done"  # undo
        assert w.scene(4)["chunk"] > 2
        for wrong in ({"chunk": 9999}, {}):
            assert w.ask("rewind", **wrong)["code"] == "request"
        assert w.frame().generation == 4


def test_slots_keep_moments(address):
    with walker(address) as w:
        for _ in range(6):
            w.frame()
        w.ask("pause")
        assert w.ask("slot_save", slot=2)["slots"] == [2]
        w.ask("pause", on=False)
        after = [w.frame() for _ in range(10)]
        assert w.ask("slot_go", slot=2)["type"] == "done"
        assert w.scene(2)["slots"] == [0, 2]
        at = w.scene(2)["frame"]
        again = [f for f in (w.frame() for _ in range(9)) if not f.flags & protocol.STILL]
        assert agree(pictures(after), pictures(again)) >= 1
        assert again[0].frame == at + 1 + again[0].skipped
        for slot in (0, 5, 9):
            assert w.ask("slot_save", slot=slot)["code"] == "request"
        assert "empty" in w.ask("slot_go", slot=3)["message"]


def test_pause_stands_at_once_and_goes_on_where_it_was(address):
    with walker(address) as w:
        for _ in range(7):
            w.frame()
        w.ask("pause")
        w.drain(0.4, ack=True)
        assert w.drain(0.4) == []
        stood = len(w.got)
        assert w.ask("pause", on=False)["type"] == "done"
        for _ in range(8):
            w.frame()
        assert len(w.got) >= stood + 8
        assert without_gap(w.got)


def test_single_steps(address):
    with walker(address) as w:
        w.frame()
        assert "pause first" in w.ask("step")["message"]
        w.ask("pause")
        w.drain(0.4, ack=True)
        w.said.clear()
        assert w.ask("step", chunks=2)["type"] == "done"
        assert w.drain(0.3) == []
        w.say("step", id=77)
        w.say("pause", on=False)  # a command ends what a step has left
        assert w.text(lambda m: m.get("id") == 77)["type"] == "done"


def test_prompts(address):
    with walker(address) as w:
        w.frame()
        for mode in (None, *protocol.PROMPT_MODES):
            answer = w.ask("prompt", text=f"a cave {mode}", mode=mode)
            assert answer["text"] == f"a cave {mode}", answer
        assert w.frame().generation == 1
        w.ask("rewind", chunk=0)
        assert w.scene(2)["prompt"] == "a hall"


def test_a_picture_of_ones_own_is_a_start(address):
    with walker(address) as w:
        w.frame()
        status, file = upload(address, w, "image", picture(4 * WIDTH, 3 * HEIGHT, "JPEG"))  # of another shape
        assert status == 201, file
        assert w.ask("reset", image=file["id"], prompt="a red room")["type"] == "done"
        assert (w.scene(2)["prompt"], w.scene(2)["start"]) == ("a red room", None)
        assert simplejpeg.decode_jpeg(w.frame().picture).shape == (HEIGHT, WIDTH, 3)
        for body, message in (
            (picture(WIDTH, HEIGHT, "BMP"), "JPEG, a PNG"),
            (picture(WIDTH, HEIGHT)[:60], "not readable"),
            (b"", "empty"),
            (bomb(20_000), "pixels"),  # a header that would unfold into 1.2 GB
            (bomb(5000), "pixels"),
        ):
            status, answer = upload(address, w, "image", body)
            assert (status, message in answer["error"]["message"]) == (400, True), answer
        assert upload(address, w, "image", b"x" * (8 * 2**20 + 1))[0] == 413
        assert http(address, "/api/uploads?kind=image", "POST", b"x", worldline_session="stranger")[0] == 404
        assert http(address, "/api/uploads?kind=image", "POST", b"x")[0] == 422
        assert "upload it first" in w.ask("reset", image="0" * 32)["message"]
        assert w.frame().generation == 2  # and the walk goes on


def test_save_and_load_and_watch(address, engine, tmp_path):
    with walker(address) as w:
        w.press("KeyW")
        # A chunk that was made again under newer input was shown in parts only: compare where the input stood still.
        shown = pictures([w.frame() for _ in range(25)][12:])
        w.ask("pause")
        file = w.ask("save")["file"]
        status, body, headers = http(address, file["url"])
        assert (status, len(body)) == (200, file["bytes"])
        assert "attachment" in headers["content-disposition"]
        assert upload(address, w, "session", body)[0] == 201
        status, up = upload(address, w, "session", body)
        assert w.ask("load", file=up["id"])["type"] == "done"
        end = w.scene(2)
        assert (end["cause"], end["chunk"]) == ("load", end["frame"] // 4)
        assert end["chunk"] >= 3
        w.ask("load", file=up["id"], watch=True)
        assert (w.scene(3)["chunk"], w.scene(3)["playing"]) == (0, True)
        w.ask("pause", on=False)
        again = [w.frame() for _ in range(26)]
        assert agree(shown, pictures([f for f in again if not f.flags & protocol.STILL])) >= 4
        assert all(f.flags & protocol.PLAYING for f in again if 1 <= f.frame <= 12)
        assert w.text("played")["completed"]
    for wrong in (b"not a session", body[: len(body) // 2], body.replace(b"worldline-session", b"worldlime-session")):
        with walker(address) as w:
            w.frame()
            status, up = upload(address, w, "session", wrong)
            assert w.ask("load", file=up["id"])["code"] == "request"
            assert w.frame().generation == 1


def test_recordings_are_films_of_what_was_walked(address):
    with walker(address) as w:
        w.frame()
        assert "no recording" in w.ask("record", on=False)["message"]
        w.ask("record", on=True)
        frames = [w.frame() for _ in range(10)]
        assert frames[-1].flags & protocol.RECORDING
        assert "already" in w.ask("record", on=True)["message"]
        file = w.ask("record", on=False)["file"]
        status, body, _ = http(address, file["url"])
        assert status == 200
        with av.open(io.BytesIO(body)) as film:
            count = sum(1 for _ in film.decode(video=0))
            assert film.streams.video[0].width % WIDTH == 0
        assert count >= 8
        assert http(address, "/api/files/" + "0" * 32)[0] == 404
        assert http(address, "/api/files/..%2f..%2fetc%2fpasswd")[0] == 404


def test_a_recording_ends_at_its_length(address, monkeypatch):
    from worldline.serve import player

    monkeypatch.setattr(player, "RECORD_S", 0.4)
    with walker(address) as w:
        w.frame()
        w.ask("record", on=True)
        ended = w.text("recording")
        assert "full length" in ended["reason"]
        assert http(address, ended["file"]["url"])[0] == 200


def test_trajectories_play_until_they_end_or_the_player_acts(address):
    with walker(address) as w:
        w.frame()
        answer = w.ask("play", actions="w*2,l*1")
        assert answer["type"] == "done"
        frames = []
        while not any(m["type"] == "played" for m in w.said):
            frames.append(w.frame())
        frames += [w.frame() for _ in range(5)]
        played = [f for f in frames if f.flags & protocol.PLAYING]
        keys = {f.frame - played[0].frame + played[0].frame % 4 - 1: f.keys for f in played}
        assert len(keys) >= 6
        assert all(keys[i] == (1 if i < 8 else 0b100000) for i in keys), keys
        assert w.text("played") == {"type": "played", "id": w.ids, "completed": True}
        w.said.clear()
        w.ask("play", actions="w*100")
        w.press("KeyS")
        assert not w.text("played")["completed"]
        for wrong in ("w*", "fly*3", "u*2", "w*99999"):
            assert w.ask("play", actions=wrong)["code"] == "request"


def test_every_command_is_answered_once_and_late_moves_replace_waiting_ones(address):
    with walker(address) as w:
        w.frame()
        for i in range(100, 120):
            w.say("reset", id=i, seed=i)
        answers = [w.text(lambda m, i=i: m.get("id") == i) for i in range(100, 120)]
        assert answers[-1]["type"] == "done"
        assert {a.get("code") for a in answers} == {None, "replaced"}
        w.say("ping", t=1.5)
        w.text("pong")
        assert len([m for m in w.said if m.get("id") in range(100, 120)]) == 20


def test_ping(address):
    with walker(address) as w:
        w.live()
        w.say("ping", t=12.5, rtt_ms=80)
        pong = w.text("pong")
        assert pong["t"] == 12.5
        assert abs(pong["server_ms"] / 1e3 - time.time()) < 5


def test_garbage_is_answered_and_play_goes_on(address, app):
    with walker(address) as w:
        w.frame()
        for rubbish in ("", "{", "[]", '{"type": 1}', '{"type": "input", "seq": "a"}', b"\x00\x01"):
            w.socket.send(rubbish)
        w.say("reset", start="attic")  # a place that is not there
        errors = []
        while len(errors) < 7:
            w.frame()
            errors = [m for m in w.said if m["type"] == "error"]
        assert [e["code"] for e in errors] == ["message"] * 6 + ["request"]
        assert "expected one of" in errors[-1]["message"]
        assert without_gap([w.frame(), w.frame()])
    assert app.state.lobby.counters["bad_messages"] == 6


@pytest.mark.parametrize("size", [protocol.MAX_MESSAGE + 1, 10 * protocol.MAX_MESSAGE])
def test_oversized_messages_end_the_connection_only(address, size):
    with walker(address) as w:
        resume = w.live()["resume"]
        w.socket.send("x" * size)
        with pytest.raises(ConnectionClosed):
            w.drain(5)
        assert w.socket.protocol.close_code == 1009
    with walker(address, {"resume": resume}) as w:
        assert w.live()["resumed"]


def test_endless_garbage_is_shown_the_door(address, monkeypatch):
    monkeypatch.setattr(app_module, "MAX_BAD_MESSAGES", 5)
    with walker(address) as w:
        for _ in range(6):
            w.socket.send("rubbish")
        with pytest.raises(ConnectionClosed) as closed:
            w.drain(5)
    assert closed.value.rcvd.code == 4400


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"type":"ack","generation":1,"frame":1}', "message"),
        ("?", "message"),
        ('{"type":"hello","version":1}', "version"),
    ],
)
def test_who_does_not_say_hello_is_not_let_in(address, app, first, code):
    with connect(f"ws://{address}/ws") as socket:
        socket.send(first)
        assert json.loads(socket.recv(timeout=WAIT))["code"] == code
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=WAIT)
        assert closed.value.rcvd.code == 4400
    assert not app.state.lobby.visits


def test_who_says_nothing_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(app_module, "HELLO_S", 0.2)
    with connect(f"ws://{address}/ws") as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=WAIT)
        assert closed.value.rcvd.code == 4400


def test_a_broken_world_is_told_and_a_reset_mends_it(address, engine):
    bias = engine.model.proj_out.bias
    kept = bias.detach().clone()
    with walker(address) as w:
        w.frame()
        try:
            with torch.no_grad():
                bias[0] = float("nan")
            told = w.text("error")
            assert (told["code"], told["retry"]) == ("world", "reset")
            assert "non-finite" in told["message"]
        finally:
            with torch.no_grad():
                bias.copy_(kept)
        assert w.ask("reset")["type"] == "done"
        w.scene(2)
        frames = [w.frame() for _ in range(5)]
        assert frames[0].frame == 0
        assert without_gap(frames)


def test_a_world_that_loads_says_so_and_then_begins(engine):
    gate, walked = threading.Event(), threading.Event()

    def load():
        begins("codec")
        gate.wait(60)
        begins("warm-up")
        walked.wait(60)
        return engine

    with running(create_app(load)) as address, walker(address) as w:
        assert w.text(lambda m: m.get("stage") == "codec")["message"] == "reading the codec"
        status, body, _ = http(address, "/readyz")
        assert (status, json.loads(body)["ready"]) == (503, False)
        assert http(address, "/healthz")[0] == 200
        status, body, headers = http(address, "/api/world")
        assert (status, json.loads(body)["error"]["retry"], headers["retry-after"]) == (503, "later", "2")
        gate.set()
        assert w.text(lambda m: m.get("stage") == "warm-up")["elapsed_s"] >= 0
        walked.set()
        assert w.frame().frame == 0
        assert http(address, "/readyz")[0] == 200


def test_a_world_that_cannot_be_loaded_says_why():
    def load():
        raise WorldlineError("no world here")

    with running(create_app(load)) as address:
        with walker(address) as w:
            with pytest.raises(ConnectionClosed):
                w.text("never")
            assert any("no world here" in m["message"] for m in w.said)
        assert http(address, "/readyz")[0] == 503


def test_going_down_is_told(app):
    folder = app.state.lobby.spool.root
    with running(app, give="server") as server, walker(server.where) as w:
        w.frame()
        server.should_exit = True
        ended = w.state("ended")
        assert (ended["reason"], ended["retry"]) == ("shutdown", "reconnect")
        with pytest.raises(ConnectionClosed) as closed:
            w.text("never")
        assert closed.value.rcvd.code == 1012
    assert not app.state.lobby.visits
    assert not folder.exists()


def test_a_taken_port_is_named():
    holder = listen("127.0.0.1", 0)
    port = holder.getsockname()[1]
    with pytest.raises(WorldlineError, match=f"port {port} .* is taken"):
        listen("127.0.0.1", port)
    with pytest.raises(WorldlineError, match="not to be had"):
        listen("127.0.0.1", 70_000)
    holder.close()


def test_a_session_cannot_fill_the_disk(tmp_path, monkeypatch):
    from worldline.serve import spool

    monkeypatch.setattr(spool, "MAX_FILES", 3)
    folder = Folder(tmp_path / "a")
    for _ in range(3):
        folder.new("png").write_bytes(b"x")
    with pytest.raises(WorldlineError, match="3 files"):
        folder.new("png")
    for name in ("../a/x", "0" * 31, "0" * 32):
        with pytest.raises(WorldlineError, match="upload it first"):
            folder.find(name, "png")
