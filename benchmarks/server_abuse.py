"""What a server has to bear, as functions on a running one: malformed messages, absurd controls, clients that vanish, a client
that reads one frame a second, strangers. Each returns what it saw; `benchmarks.fuzz_server` makes the table of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from worldline.serve.protocol import CODECS, NAMES_OF, STILL, Frame

WAIT_S = 300.0  # for anything that has to come; a busy machine is no fault of the server
CHUNK_MS = 250.0  # four frames at 16 a second
KINDS = [*NAMES_OF.values(), "attach", "detach", "frame", ""]
NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e308",
    "1e-320",
    "0",
    "-1",
    "4294967296",
    "9" * 400,
    "true",
    "null",
]
KEYS = ["KeyW", "KeyA", "KeyS", "KeyD", "ArrowLeft", "ArrowRight", "KeyQ", "KeyE", "F13", "", "\u0000", "\ud83d\ude00"]


@dataclass
class Target:
    """A running server. token: its bearer token, where it has one."""

    address: str
    token: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What a welcome client sends."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def socket(self, **options: Any) -> connect:
        """A WebSocket that may come in."""
        return connect(
            f"ws://{self.address}/ws", max_size=None, compression=None, additional_headers=self.headers,
            ping_interval=None, open_timeout=WAIT_S, **options,
        )  # fmt: skip

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """(status, body); refusals are no exceptions."""
        request = urllib.request.Request(f"http://{self.address}{path}", headers=self.headers | headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")

    def metrics(self) -> dict[str, float]:
        """The figures of /metrics; a label's value stands for its name."""
        rows = (r.rsplit(" ", 1) for r in self.get("/metrics")[1].splitlines() if r and r[0] != "#")
        return {name.removeprefix('worldline_events_total{kind="').rstrip('"}'): float(value) for name, value in rows}


@dataclass
class Player:
    """A polite client that keeps account of what it is sent. mark: its own range of input numbers, by which a frame that
    was made for somebody else is known."""

    ws: ClientConnection
    mark: int
    seen: Counter[str] = field(default_factory=Counter)
    said: list[dict[str, Any]] = field(default_factory=list)
    generation: int = 0
    last: int = -1
    seq: int = 0

    async def say(self, kind: str, **fields: Any) -> None:
        """One message."""
        await self.ws.send(json.dumps({"type": kind, **fields}))

    async def press(self, *keys: str) -> None:
        """Hold these keys."""
        self.seq += 1
        await self.say("input", seq=self.mark + self.seq, keys=list(keys))

    async def take(self, timeout: float = WAIT_S) -> Frame | dict[str, Any]:
        """The next message; a frame is checked and acknowledged."""
        payload = await asyncio.wait_for(self.ws.recv(), timeout)
        if isinstance(payload, str):
            message = json.loads(payload)
            self.said.append(message)
            if message["type"] == "scene":
                self.generation, self.last = message["generation"], -1
            return message
        frame, _ = Frame.unpack(payload)
        self.seen["frames"] += 1
        self.seen["skipped"] += frame.skipped
        self.seen["of another generation"] += frame.generation != self.generation
        self.seen["of another client"] += not (frame.seq == 0 or self.mark < frame.seq <= self.mark + self.seq)
        expected = self.last if frame.flags & STILL else self.last + 1 + frame.skipped
        self.seen["out of order"] += self.last >= 0 and frame.frame != expected
        self.seen["beyond limits"] += not (abs(frame.yaw) < 1e3 and abs(frame.forward) <= 1 and frame.codec in CODECS)
        self.last = frame.frame
        await self.say("ack", generation=frame.generation, frame=frame.frame)
        return frame

    async def until(self, kind: str, timeout: float = WAIT_S, **fields: Any) -> dict[str, Any]:
        """Play on until this message comes."""
        async with asyncio.timeout(timeout):
            while True:
                message = await self.take(timeout)
                if isinstance(message, dict) and message["type"] == kind and fields.items() <= message.items():
                    return message

    async def walk(self, seconds: float) -> None:
        """Play politely for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.take()
            if self.seen["frames"] % 16 == 0:
                await self.press(random.choice(["KeyW", "KeyA", "KeyE"]))


@contextlib.asynccontextmanager
async def playing(target: Target, mark: int, leave: bool = True):
    """A polite player who has said hello."""
    async with target.socket() as ws:
        player = Player(ws, mark)
        await player.say("hello", version=2, codecs=["jpeg"])
        yield player
        if leave:
            with contextlib.suppress(ConnectionClosed):
                await player.say("leave")


# -- malformed messages ------------------------------------------------------------------------------------------------


def absurd(random: random.Random, depth: int = 0) -> str:
    """JSON, nearly: every kind of value at every place, and numbers that are none."""
    pick = random.randrange(9 if depth < 4 else 6)
    if pick <= 2:
        return random.choice(NUMBERS)
    if pick == 3:
        return json.dumps(random.choice(KEYS) * random.choice((1, 1, 40)))
    if pick == 4:
        return json.dumps(
            "".join(chr(random.choice((random.randrange(128), random.randrange(0xD800)))) for _ in range(12))
        )
    if pick == 5:
        return random.choice(['""', "[]", "{}", "false", '"\\ud800"', '"' + "a" * 700 + '"'])
    if pick == 6:
        return "[" + ",".join(absurd(random, depth + 1) for _ in range(random.randrange(20))) + "]"
    if pick == 7:
        return "{" + ",".join(f'"{random.choice(FIELDS)}":{absurd(random, depth + 1)}' for _ in range(4)) + "}"
    return "[" * 200 + "]" * random.choice((0, 200))


FIELDS = ["type", "id", "seq", "keys", "mouse", "axes", "generation", "frame", "t", "text", "mode", "start", "image",
          "seed", "prompt", "on", "chunks", "chunk", "slot", "file", "watch", "actions", "codec",
          "rtt_ms", "version", "resume", "sdp"]  # fmt: skip


def malformed(random: random.Random) -> str | bytes:
    """One message that is not of the protocol, or barely."""
    pick = random.randrange(8)
    if pick == 0:
        return random.randbytes(random.choice((0, 1, 52, 60, 2000)))
    if pick == 1:
        return "".join(chr(random.randrange(1, 0xD7FF)) for _ in range(random.randrange(80)))
    if pick == 2:
        return json.dumps({"type": random.choice(KINDS), "seq": 1, "keys": []})[: random.randrange(30)]
    if pick == 3:
        return random.choice(
            ("[" * 5000, '{"a":' * 3000, '"' * 9, "9" * 5000, "{}", "null", '{"type":"hello","version":2}')
        )
    kind = random.choice(KINDS)
    wrong = [f'"{name}":{absurd(random)}' for name in random.sample(FIELDS[1:], random.randrange(1, 7))]
    return "{" + ",".join([f'"type":"{kind}"', *wrong]) + "}"


async def fuzz(target: Target, messages: int, seed: int, parallel: int = 4) -> Counter[str]:
    """Malformed messages over many connections, seated and waiting ones, until so many were sent."""
    found: Counter[str] = Counter()

    async def one(number: int) -> None:
        choose = random.Random(seed * 1000 + number)
        while found["messages"] < messages:
            found["connections"] += 1
            try:
                async with target.socket() as ws:
                    if choose.random() < 0.9:
                        await ws.send(json.dumps({"type": "hello", "version": 2, "codecs": ["h264", "jpeg"]}))
                    reading = asyncio.create_task(_tally(ws, found))
                    try:
                        for _ in range(choose.choice((3, 60, 60))):
                            await ws.send(malformed(choose))
                            found["messages"] += 1
                            if choose.random() < 0.1:
                                await asyncio.sleep(choose.random() * 0.05)
                        if choose.random() < 0.5:
                            await ws.send('{"type":"leave"}')
                    finally:
                        reading.cancel()
                        await asyncio.gather(reading, return_exceptions=True)
            except ConnectionClosed as closed:
                found[f"closed {closed.rcvd.code if closed.rcvd else 1006}"] += 1
            except (OSError, TimeoutError) as error:
                found[f"no connection: {type(error).__name__}"] += 1
                await asyncio.sleep(0.2)

    await asyncio.gather(*(one(i) for i in range(parallel)))
    return found


async def _tally(ws: ClientConnection, found: Counter[str]) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for payload in ws:
            if isinstance(payload, bytes):
                found["frames"] += 1
                frame, _ = Frame.unpack(payload)
                await ws.send(json.dumps({"type": "ack", "generation": frame.generation, "frame": frame.frame}))
            else:
                message = json.loads(payload)
                found[f"answer {message.get('code', message['type'])}"] += 1


async def absurd_controls(target: Target, inputs: list[str], mark: int) -> Counter[str]:
    """Well-formed and ill-formed inputs, as raw text, to a walk that has to go on finite: a frame after every tenth."""
    async with playing(target, mark) as player:
        await player.until("scene")
        for i, text in enumerate(inputs):
            await player.ws.send(text)
            player.seq = 2**32  # the inputs' own numbers are anything
            if i % 10 == 9:
                while not isinstance(await player.take(), Frame):
                    pass
            if i % 40 == 39:  # before the server has had enough of this connection
                player.said.clear()
        await player.say("reset")
        await player.until("scene", cause="reset")
        await player.take()
        return player.seen


# -- strangers ---------------------------------------------------------------------------------------------------------


async def strangers(target: Target, attempts: int, seed: int = 0) -> Counter[str]:
    """Without the token, with wrong ones, from other sites, under other names: what each was answered."""
    choose, found = random.Random(seed), Counter[str]()
    token = target.token or ""
    bad_tokens = ["", "x", token[:-1], token + "x", token.swapcase(), token[::-1], "\u00e9"]
    paths = [
        "/api/world",
        "/api/starts",
        "/metrics",
        "/client/style.css",
        "/openapi.json",
        "/api/session",
        "/api/files/" + "0" * 32,
    ]
    for _ in range(attempts):
        way = choose.choice(("no token", "wrong token", "wrong cookie", "other site", "other name"))
        headers, options = {}, {}
        if way == "wrong token":
            headers["Authorization"] = f"Bearer {choose.choice(bad_tokens)}".encode().decode("latin-1")
        elif way == "wrong cookie":
            headers["Cookie"] = f"worldline_{choose.randrange(16**8):08x}={choose.choice(bad_tokens[:-1]) or 'x'}"
        elif way == "other site":
            headers |= target.headers
            options["origin"] = choose.choice(("http://evil.example", "null", f"http://{target.address}.evil.example"))
        elif way == "other name":
            headers |= target.headers | {
                "Host": choose.choice(("evil.example", "169.254.169.254", "127.0.0.1.nip.example"))
            }
        if way != "other site" and choose.random() < 0.5:
            request = urllib.request.Request(f"http://{target.address}{choose.choice(paths)}", headers=headers)
            try:
                answer = await asyncio.to_thread(urllib.request.urlopen, request, timeout=WAIT_S)
                status = answer.status
            except urllib.error.HTTPError as error:
                status = error.code
            found[f"{way}: HTTP {status}"] += 1
            continue
        try:
            async with connect(f"ws://{target.address}/ws", additional_headers=headers, **options):
                found[f"{way}: WebSocket let in"] += 1
        except InvalidStatus as error:
            found[f"{way}: WebSocket {error.response.status_code}"] += 1
    return found


# -- clients that vanish -----------------------------------------------------------------------------------------------

SCRIPT = [  # a visit, message by message; None takes one message from the server
    {"type": "hello", "version": 2, "codecs": ["h264", "jpeg"]}, None, None, None, None,
    {"type": "input", "seq": 1, "keys": ["KeyW"]}, {"type": "ack", "generation": 1, "frame": 0}, None, None,
    {"type": "prompt", "id": 1, "text": "a cave"}, {"type": "record", "id": 2, "on": True}, None, None,
    {"type": "slot_save", "id": 3, "slot": 1}, {"type": "play", "id": 4, "actions": "w*20"}, None,
    {"type": "rewind", "id": 5, "chunk": 0}, {"type": "save", "id": 6}, {"type": "pause", "id": 7},
    {"type": "step", "id": 8, "chunks": 4}, None, {"type": "slot_go", "id": 9, "slot": 1}, {"type": "reset", "id": 10}, None,
    {"type": "codec", "id": 11, "codec": "jpeg"}, {"type": "leave"}, None,
]  # fmt: skip


async def vanish(target: Target, after: int, how: str) -> None:
    """Follow the script for so many messages, then be gone: `close` says goodbye, `reset` tears the connection."""
    ws = await target.socket()
    try:
        for step in SCRIPT[:after]:
            if step is not None:
                await ws.send(json.dumps(step))
            else:
                with contextlib.suppress(TimeoutError):  # at some steps nothing comes
                    await asyncio.wait_for(ws.recv(), 0.3)
    except ConnectionClosed:
        pass
    if how == "reset":
        raw = ws.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ws.transport.abort()
    await ws.close()


# -- a slow client -----------------------------------------------------------------------------------------------------


async def slow(target: Target, seconds: float, period: float, mark: int) -> dict[str, float]:
    """Takes a frame, acknowledges it, sleeps. All in ms.

    age: from a frame's pixels being ready to its being taken. Every frame has a bound of its own: the time that its chunk is on
    screen (or on a busy machine what making it took), and the round trip that this client really made: from its taking the
    frame before, whose acknowledgement let this one go, to its taking this one. over: frames that were older; margin: how far the
    worst of all stayed below its bound (negative where it did not).
    """
    ages, queued, behind, trips, margins = [], [], [], [], []
    async with playing(target, mark) as player:
        await player.until("scene")
        until, taken = time.monotonic() + seconds, None
        while time.monotonic() < until:
            payload = await asyncio.wait_for(player.ws.recv(), WAIT_S)
            if isinstance(payload, str):
                continue
            frame, server_ms = Frame.unpack(payload)
            now = time.monotonic()
            ages.append(1e3 * time.time() - server_ms + frame.queued_ms)
            queued.append(frame.queued_ms)
            behind.append(frame.skipped)
            if taken is not None:
                trips.append(1e3 * (now - taken))
                margins.append(max(frame.compute_ms, CHUNK_MS) + trips[-1] - ages[-1])
            taken = now
            await player.say("ack", generation=frame.generation, frame=frame.frame)
            await asyncio.sleep(period)
    first = min(3, len(margins) - 1)  # while the server learns how quick this client is
    kept = sorted(ages[first:])
    return {
        "frames": len(ages), "skipped": sum(behind), "age_ms_p50": kept[len(kept) // 2], "age_ms_max": kept[-1],
        "queued_ms_max": max(queued[first:]), "round_trip_ms_max": max(trips[first:]),
        "over": sum(m < 0 for m in margins[first:]), "margin_ms_min": min(margins[first:]),
    }  # fmt: skip
