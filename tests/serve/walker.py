"""A client of the wire protocol for tests: polite unless told otherwise."""

from __future__ import annotations

import contextlib
import json
import time
from contextlib import contextmanager

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from worldline.serve.protocol import HEADER, Frame

WAIT = 15.0  # seconds for anything that has to come


class Walker:
    """One connection. Text messages met on the way are kept in `said`."""

    def __init__(self, socket) -> None:
        self.socket, self.said, self.frames = socket, [], 0
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
            self.frames += 1
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
            elif ack:
                self.ack(Frame.unpack(payload)[0])

    def scene(self, generation: int) -> dict:
        return self.text(lambda m: m["type"] == "scene" and m["generation"] == generation)

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
    with connect(f"ws://{address}/ws", max_size=None, compression=None, **options) as socket:
        w = Walker(socket)
        w.say("hello", **({"version": 2, "codecs": ["jpeg"]} | (hello or {})))
        yield w
        if leave:
            with contextlib.suppress(ConnectionClosed):
                w.say("leave")


def size_of(frame: Frame) -> int:
    """Bytes on the wire."""
    return HEADER.size + len(frame.picture)
