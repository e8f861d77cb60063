"""WebRTC: the client of aiortc against the server, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import sys
import time
import urllib.request
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from tests.serve.conftest import running
from tests.tiny_world import HEIGHT, WIDTH
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from worldline.schema import WorldlineError
from worldline.serve import protocol
from worldline.serve.app import access_of, create_app
from worldline.serve.inputs import InputState
from worldline.serve.lobby import Rules
from worldline.serve.protocol import Frame, Input
from worldline.serve.signalling import peers_on
from worldline.serve.workers import WorkerSeat
from worldline.stream.engine import Engine

aiortc = pytest.importorskip("aiortc", reason="aiortc is an extra: pip install 'worldline[webrtc]'")
rtc = pytest.importorskip("worldline.serve.rtc")
WAIT_S = 60.0


@pytest.fixture
def app(engine):
    return create_app(engine, access=access_of("127.0.0.1", None), webrtc=peers_on("127.0.0.1"))


class Client:
    """A walk whose pictures come over a video track. `frames`: headers with the RTP timestamp each names; `pictures`: as
    decoded, with aiortc's clock, which is the RTP timestamp less that of the first."""

    def __init__(self, socket) -> None:
        self.socket, self.said = socket, []
        self.frames: list[tuple[Frame, int]] = []
        self.jpegs: list[Frame] = []
        self.pictures: list[tuple[int, np.ndarray]] = []
        self.ids = self.seq = 0
        self.peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.channel = self.peer.createDataChannel("controls", ordered=False)
        self.peer.addTransceiver("video", direction="recvonly")
        self.peer.on("track", lambda track: self.tasks.append(asyncio.create_task(self._watch(track))))
        self.tasks = [asyncio.create_task(self._listen())]
        self.news = asyncio.Event()

    async def _listen(self) -> None:
        async for payload in self.socket:
            if isinstance(payload, str):
                self.said.append(json.loads(payload))
            elif payload[2] == protocol.CODECS.index("track"):
                frame, _ = Frame.unpack(payload)
                self.frames.append((frame, struct.unpack("<I", frame.picture)[0]))
                self.acknowledge(frame)
            else:
                self.jpegs.append(Frame.unpack(payload)[0])
                await self.say("ack", generation=self.jpegs[-1].generation, frame=self.jpegs[-1].frame)
            self.news.set()

    def acknowledge(self, frame: Frame) -> None:
        if self.channel.readyState == "open":
            self.channel.send(json.dumps({"type": "ack", "generation": frame.generation, "frame": frame.frame}))

    async def _watch(self, track) -> None:
        with contextlib.suppress(aiortc.mediastreams.MediaStreamError):
            while True:
                picture = await track.recv()
                self.pictures.append((picture.pts, picture.to_ndarray(format="rgb24")))
                self.news.set()

    def state(self, name: str) -> dict | None:
        return next((m for m in self.said if m["type"] == "state" and m["state"] == name), None)

    def scene(self, cause: str) -> dict | None:
        return next((m for m in self.said if m["type"] == "scene" and m["cause"] == cause), None)

    async def until(self, holds):
        """Wait until holds() is true of what has come; that value."""
        async with asyncio.timeout(WAIT_S):
            while not (isinstance(found := holds(), np.ndarray) or found):
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), 0.2)
            return found

    async def say(self, kind: str, **fields) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def ask(self, kind: str, **fields) -> dict:
        self.ids += 1
        mine = self.ids
        await self.say(kind, id=mine, **fields)
        return await self.until(lambda: next((m for m in self.said if m.get("id") == mine), None))

    async def offer(self) -> dict:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return await self.ask("rtc", sdp=self.peer.localDescription.sdp)

    async def use(self) -> dict:
        """Offer, connect, and ask for pictures over the track."""
        answer = await self.offer()
        assert answer["type"] == "done", answer
        await self.peer.setRemoteDescription(aiortc.RTCSessionDescription(answer["sdp"], "answer"))
        await self.until(lambda: self.peer.connectionState == "connected" and self.channel.readyState == "open")
        assert (await self.ask("codec", codec="track"))["type"] == "done"
        return answer

    def press(self, *keys: str) -> int:
        """Over the data channel."""
        self.seq += 1
        self.channel.send(json.dumps({"type": "input", "seq": self.seq, "keys": list(keys)}))
        return self.seq

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.peer.close()


@contextlib.asynccontextmanager
async def visiting(address: str, leave: bool = True, **options):
    async with connect(f"ws://{address}/ws", max_size=None, compression=None, **options) as socket:
        client = Client(socket)
        try:
            await client.say("hello", version=2, codecs=["jpeg"])
            await client.until(lambda: client.state("live"))
            yield client
            if leave:
                await client.say("leave")
        finally:
            await client.close()


def http(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=WAIT_S) as response:
        return response.read().decode()


def figure(address: str, name: str) -> float:
    rows = (line.rsplit(" ", 1) for line in http(address, "/metrics").splitlines() if line[0] != "#")
    return {name: float(value) for name, value in rows}.get(name, 0.0)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the two pictures' brightness."""
    return float(np.corrcoef(a.mean(-1).ravel(), b.mean(-1).ravel())[0, 1])


def test_pictures_come_over_the_track_and_controls_over_the_channel(address, engine):
    async def play() -> None:
        async with visiting(address) as c:
            assert "webrtc" in next(m for m in c.said if m["type"] == "hello")["features"]
            answer = await c.use()
            candidates = re.findall(r"candidate:.* (\S+) \d+ typ host", answer["sdp"])
            assert set(candidates) == {"127.0.0.1"}  # nobody else can reach it

            # Pictures: every header names the timestamp of one that came, and they are those of the walk.
            await c.until(lambda: len(c.pictures) > 12 and len(c.frames) > 12)
            jpegs = len(c.jpegs)
            await c.ask("rewind", chunk=0)
            await c.until(lambda: c.scene("rewind"))
            generation = c.scene("rewind")["generation"]
            still = await c.until(lambda: next((f for f in c.frames if f[0].generation == generation), None))
            assert still[0].flags & protocol.STILL
            stamps = {rtp for _, rtp in c.frames}
            starts = [rtp for rtp in stamps if all((rtp + pts) % 2**32 in stamps for pts, _ in c.pictures[:-4])]
            assert len(starts) == 1
            shown = await c.until(lambda: dict(c.pictures).get((still[1] - starts[0]) % 2**32))
            assert shown.shape == (HEIGHT, WIDTH, 3)
            here, elsewhere = (engine.session(name).first_frame for name in ("hall", "cellar"))
            assert likeness(shown, here) > max(0.8, likeness(shown, elsewhere))  # noise, at a small bit rate
            assert len(c.jpegs) == jpegs  # no longer over the WebSocket

            # Controls: what is pressed acts, on the frames that say so.
            seq = c.press("KeyE")
            turned, _ = await c.until(lambda: next((f for f in c.frames if f[0].seq >= seq and f[0].yaw), None))
            assert turned.yaw == pytest.approx(2.0)
            c.press()
            await c.until(lambda: c.frames[-1][0].yaw == 0)

            # Back over the WebSocket.
            assert (await c.ask("codec", codec="jpeg"))["type"] == "done"
            jpegs = len(c.jpegs)
            await c.until(lambda: len(c.jpegs) > jpegs + 3)

    asyncio.run(play())


def test_a_peer_is_only_for_whoever_plays(engine, address):
    async def play() -> None:
        async with visiting(address) as c:
            async with connect(f"ws://{address}/ws") as second:
                other = Client(second)
                await other.say("hello", version=2)
                await other.until(lambda: other.state("queued"))
                assert (await other.offer())["code"] == "request"
                await other.close()
            assert (await c.ask("codec", codec="track"))["code"] == "request"  # before there is one
            for sdp in ("v=0", "nonsense", "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=sendrecv\r\n"):
                refused = await c.ask("rtc", sdp=sdp)
                assert (refused["type"], refused["code"]) == ("error", "request"), refused
            both = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
            both.createDataChannel("controls")
            both.addTransceiver("video", direction="sendrecv")  # nobody sends us pictures
            await both.setLocalDescription(await both.createOffer())
            assert "recvonly" in (await c.ask("rtc", sdp=both.localDescription.sdp))["message"]
            await both.close()
            for _ in range(4):
                await c.ask("rtc", sdp="v=0")
            assert "offers" in (await c.ask("rtc", sdp="v=0"))["message"]
            count = len(c.jpegs)
            await c.until(lambda: len(c.jpegs) > count)  # the walk goes on as it did

    asyncio.run(play())
    with running(create_app(engine, access=access_of("127.0.0.1", None))) as plain:

        async def refused() -> None:
            async with visiting(plain) as c:
                assert "webrtc" not in next(m for m in c.said if m["type"] == "hello")["features"]
                assert (await c.offer())["code"] == "feature"

        asyncio.run(refused())


def test_strangers_get_no_peer(engine):
    access = access_of("127.0.0.1", "correct horse")
    with running(create_app(engine, access=access, webrtc=peers_on("127.0.0.1"))) as address:

        async def play() -> None:
            for options in (
                {},
                {"additional_headers": {"Authorization": "Bearer wrong horse"}},
                {"additional_headers": {"Authorization": "Bearer correct horse"}, "origin": "http://evil.example"},
            ):
                with pytest.raises(InvalidStatus):
                    await connect(f"ws://{address}/ws", **options)
            async with visiting(address, additional_headers={"Authorization": "Bearer correct horse"}) as c:
                await c.use()
                await c.until(lambda: c.pictures)

        asyncio.run(play())


@pytest.mark.parametrize("how", ["torn", "left", "peer alone", "never found"])
def test_a_client_that_goes_leaves_nothing(engine, how, monkeypatch):
    app = create_app(
        engine, access=access_of("127.0.0.1", None), rules=Rules(resume_s=0.1), webrtc=peers_on("127.0.0.1")
    )
    process = psutil.Process()

    def sockets() -> int:
        return sum(c.type == socket.SOCK_DGRAM for c in process.net_connections())

    with running(app) as address:
        tasks = figure(address, "worldline_tasks")
        datagrams = sockets()

        async def play() -> None:
            async with visiting(address, leave=how == "left") as c:
                if how == "never found":  # an answer that is not taken: the server gives the peer up by itself
                    monkeypatch.setattr(rtc, "CONNECT_S", 0.3)
                    await c.offer()
                    (player,) = app.state.lobby.live
                    await c.until(lambda: player.connection.peer._over)
                    return
                await c.use()
                await c.until(lambda: c.pictures)
                assert sockets() > datagrams
                if how == "peer alone":  # the walk goes on over the WebSocket
                    await c.peer.close()
                    assert (await c.ask("codec", codec="jpeg"))["type"] == "done"
                    count = len(c.jpegs)
                    await c.until(lambda: len(c.jpegs) > count + 2)
                if how == "torn":
                    c.socket.transport.abort()

        asyncio.run(play())
        deadline = time.monotonic() + WAIT_S
        while (
            figure(address, "worldline_seats_taken")
            or figure(address, "worldline_tasks") > tasks
            or sockets() > datagrams
        ):
            assert time.monotonic() < deadline, (http(address, "/metrics"), sockets(), datagrams)
            time.sleep(0.05)
        assert figure(address, 'worldline_events_total{kind="failures"}') == 0


def test_the_channel_takes_inputs_alone(address):
    async def play() -> None:
        async with visiting(address) as c:
            extra = c.peer.createDataChannel("more")
            await c.use()
            c.channel.send(json.dumps({"type": "reset", "id": 99}))
            c.channel.send("{")
            c.channel.send(b"bytes")
            await c.until(lambda: sum(m.get("code") == "message" for m in c.said) == 3)
            assert not any(m.get("id") == 99 for m in c.said)
            await c.until(lambda: extra.readyState == "closed")
            seq = c.press("KeyW")
            await c.until(lambda: c.frames and c.frames[-1][0].seq == seq)

    asyncio.run(play())


def test_nothing_is_sent_where_a_client_says(engine):
    """An offer names other machines: the server must not knock there."""

    async def play() -> None:
        caller = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        caller.createDataChannel("controls")
        caller.addTransceiver("video", direction="recvonly")
        await caller.setLocalDescription(await caller.createOffer())
        sdp = caller.localDescription.sdp
        line = next(row for row in sdp.splitlines() if row.startswith("a=candidate"))
        foreign = line.replace(line.split()[4], "198.51.100.7")
        peer = rtc.Peer(rtc.Rtc(), HEIGHT, WIDTH, lambda header: None, None)
        await peer.answer(sdp.replace(line, foreign), "127.0.0.1")
        transports = {t.sender.transport.transport for t in peer._connection.getTransceivers()}
        found = {c.ip for t in transports for c in t.getRemoteCandidates()}
        assert found == {"127.0.0.1"}
        await peer.close()
        await caller.close()

    asyncio.run(play())


def test_only_the_newest_picture_waits(monkeypatch):
    monkeypatch.setattr(rtc, "REPEAT_S", 0.05)
    told = []

    async def play() -> None:
        track = rtc._Track(HEIGHT, WIDTH, told.append)
        track.sender = SimpleNamespace(_RTCRtpSender__rtp_timestamp=4242)
        frames = [
            Frame(1, i, i, 0, np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8).tobytes(), "track").pack(0)
            for i in range(5)
        ]
        for frame in frames[:4]:
            track.show(frame)
        first = await track.recv()
        assert first.to_ndarray(format="rgb24").mean() == pytest.approx(120, abs=3)
        assert not told
        again = await track.recv()  # nothing new: the same once more
        assert again.pts > first.pts
        header, _ = Frame.unpack(told[0])
        assert (header.frame, header.skipped, struct.unpack("<I", header.picture)[0]) == (3, 3, 4242)
        track.show(frames[4])
        track.forget()  # another generation
        waiting = asyncio.create_task(track.recv())
        await asyncio.sleep(2.5 * rtc.REPEAT_S)
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(play())


def test_what_an_overtaken_input_turned_is_not_lost():
    """On the channel a later message may come first: its keys hold, and the mouse's travel of both adds up."""
    state = InputState(2.0, 3.0)
    state.update(Input(2, (), (10.0, 0.0)))
    state.update(Input(1, ("KeyW",), (10.0, 0.0)))
    controls = state.latch(4)
    assert controls.keys[0] == ()
    assert controls.look[:, 0].sum() == pytest.approx(2.0)


def test_without_aiortc_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "worldline.serve.rtc", None)
    with pytest.raises(WorldlineError, match=r"worldline\[webrtc\]"):
        peers_on("127.0.0.1")


def test_peers_listen_where_the_server_does():
    assert rtc.Rtc.on("localhost").addresses == ("127.0.0.1",)
    assert rtc.Rtc.on("192.0.2.7").addresses == ("192.0.2.7",)
    assert rtc.Rtc.on("0.0.0.0").addresses is None


@pytest.mark.slow
def test_a_walk_in_a_worker_process(world):
    """Pixels come from the worker, the peer lives in the router; a worker that dies ends both."""
    seat = WorkerSeat(partial(Engine.load, world, threads=1, warm=False))
    with running(create_app([seat], webrtc=peers_on("127.0.0.1"))) as address:

        async def play() -> None:
            async with visiting(address, leave=False) as c:
                await c.use()
                await c.until(lambda: len(c.pictures) > 8)
                assert c.pictures[-1][1].shape == (HEIGHT, WIDTH, 3)
                seat.process.kill()
                ended = await c.until(lambda: c.state("ended"))
                assert ended["reason"] == "worker"
                await c.until(lambda: c.peer.connectionState in ("closed", "failed", "disconnected"))

        asyncio.run(play())
