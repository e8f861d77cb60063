"""One client's WebSocket: a bounded outbox, one writer, and an end with a code."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from fastapi import WebSocket, WebSocketDisconnect

from worldline.serve.protocol import CODECS

if TYPE_CHECKING:
    from worldline.serve.rtc import Peer

OUTBOX = 32  # messages that may wait for the socket
FLUSH_S = 2.0  # for what waits when the connection ends
TRACK = CODECS.index("track")


class Connection:
    """`send` waits for room, `post` does not; neither raises, as a client may be gone at any time."""

    def __init__(self, ws: WebSocket) -> None:
        self.ws = ws
        self.greeted = self.scened = False  # whether it has had its hello, and a scene
        self.bad = self.throttled = self.offers = 0
        self.peer: Peer | None = None  # where pictures of codec track go
        self.code: int | None = None  # why the server ends it
        self.reason = ""
        self._items: deque[str | bytes] = deque()
        self._ready, self._space = asyncio.Event(), asyncio.Event()
        self._gone = False
        self._writer: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether anything may still be sent."""
        return not self._gone and self.code is None

    async def send(self, message: str | bytes) -> None:
        """Queue a message, in order; waits while the client is behind. A picture for the video track does not wait."""
        if isinstance(message, bytes) and message[2] == TRACK:
            if self.peer is not None:
                self.peer.show(message)
            return
        while self.open and len(self._items) >= OUTBOX:
            self._space.clear()
            await self._space.wait()
        if self.open:
            self._items.append(message)
            self._ready.set()

    def post(self, message: dict[str, Any]) -> None:
        """Queue a notice now. A client so far behind that there is no room for it is not listening: it is dropped."""
        if self.open:
            if len(self._items) >= 2 * OUTBOX:
                self.close(4429, "this connection does not read what it is sent")
                return
            self._items.append(json.dumps(message))
            self._ready.set()

    def tell(self, header: bytes) -> None:
        """Queue what belongs to a picture on the video track; a client far behind can do without."""
        if self.open and len(self._items) < OUTBOX:
            self._items.append(header)
            self._ready.set()

    def close(self, code: int, reason: str = "") -> None:
        """End it after what is queued."""
        if self.code is None:
            self.code, self.reason = code, reason[:100]
            self._wake()
            if self._writer is not None:
                asyncio.get_running_loop().call_later(FLUSH_S, self._writer.cancel)

    async def write(self) -> None:
        """Send what is queued until the connection ends."""
        self._writer = asyncio.current_task()
        try:
            while True:
                while self._items:
                    item = self._items.popleft()
                    self._space.set()
                    if isinstance(item, bytes):
                        await self.ws.send_bytes(item)
                    else:
                        await self.ws.send_text(item)
                if self.code is not None:
                    return
                self._ready.clear()
                await self._ready.wait()
        except (RuntimeError, WebSocketDisconnect, OSError):
            return  # for a socket that is closed starlette raises RuntimeError
        finally:
            self._gone = True
            self._items.clear()
            self._wake()

    def _wake(self) -> None:
        self._ready.set()
        self._space.set()
