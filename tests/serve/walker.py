"""A client of the wire protocol for tests: polite unless told otherwise."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from contextlib import contextmanager

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from worldline.serve.protocol import Frame

WAIT = 60.0  # seconds for anything that has to come: busy machines are slow


class Walker:
    """One connection. Text messages met on the way are kept in `said`."""

    def __init__(self, socket) -> None:
        self.socket, self.said = socket, []
        self.got: list[Frame] = []  # every frame
        self.seq = self.ids = 0

    def say(self, kind: str, **fields) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def ask(self, kind: str, **fields) -> dict:
        """A command's answer."""
        self.ids += 1
        self.say(kind, id=self.ids, **fields)
        return self.text(lambda m: m["type"] in ("done", "error") and m.get("id") == self.ids)

    def press(self, *keys: str, mouse=(0, 0), axes=(0, 0, 0, 0)) -> int:
        self.seq += 1
        self.say("input", seq=self.seq, keys=list(keys), mouse=list(mouse), axes=list(axes))
        return self.seq

    def ack(self, frame: Frame) -> None:
        self.say("ack", generation=frame.generation, frame=frame.frame)

    def frame(self, ack: bool = True, timeout: float = WAIT) -> Frame:
        """The next picture."""
        deadline = time.monotonic() + timeout
        while True:
            payload = self.socket.recv(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(payload, str):
                self.said.append(json.loads(payload))
                continue
            frame, server_ms = Frame.unpack(payload)
            assert server_ms > 0
            self.got.append(frame)
            if ack:
                self.ack(frame)
            return frame

    def text(self, wanted, ack: bool = True, timeout: float = WAIT) -> dict:
        """The first message of this type (or that a function likes), past or future; frames on the way are acknowledged."""
        likes = (lambda m: m["type"] == wanted) if isinstance(wanted, str) else wanted
        deadline, looked = time.monotonic() + timeout, 0
        while True:
            for message in self.said[looked:]:
                if likes(message):
                    return message
            looked = len(self.said)
            payload = self.socket.recv(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(payload, str):
                self.said.append(json.loads(payload))
            else:
                self.got.append(Frame.unpack(payload)[0])
                if ack:
                    self.ack(self.got[-1])

    def scene(self, generation: int) -> dict:
        return self.text(lambda m: m["type"] == "scene" and m["generation"] == generation)

    def sync(self) -> None:
        """Wait until the server has read what was said."""
        self.ids += 1
        self.say("ping", t=self.ids)
        self.text(lambda m: m["type"] == "pong" and m["t"] == self.ids)

    def live(self) -> dict:
        return self.text(lambda m: m["type"] == "state" and m["state"] == "live")

    def state(self, name: str) -> dict:
        return self.text(lambda m: m["type"] == "state" and m["state"] == name)

    def drain(self, timeout: float, ack: bool = False) -> list[Frame]:
        """Frames until none comes for `timeout` seconds; a closed connection raises."""
        frames = []
        while True:
            try:
                frames.append(self.frame(ack=ack, timeout=timeout))
            except TimeoutError:
                return frames


@contextmanager
def walker(address: str, hello: dict | None = None, leave: bool = True, **options):
    """A connection that has said hello, and says goodbye so that the next one need not wait for the seat."""
    with connect(f"ws://{address}/ws", max_size=None, compression=None, open_timeout=WAIT, **options) as socket:
        w = Walker(socket)
        w.say("hello", **({"version": 2, "codecs": ["jpeg"]} | (hello or {})))
        yield w
        if leave:
            with contextlib.suppress(ConnectionClosed):
                w.say("leave")


def without_gap(frames: list[Frame]) -> bool:
    """Whether every frame follows the one before, but for those that the server says it skipped (a busy machine)."""
    return all(b.frame == a.frame + 1 + b.skipped for a, b in itertools.pairwise(frames))


def pictures(frames: list[Frame]) -> dict[int, bytes]:
    """By frame number."""
    return {f.frame: f.picture for f in frames}


def agree(a: dict[int, bytes], b: dict[int, bytes]) -> int:
    """How many frames both have; all of them have to be the same."""
    common = a.keys() & b.keys()
    assert all(a[i] == b[i] for i in common), sorted(i for i in common if a[i] != b[i])
    return len(common)
