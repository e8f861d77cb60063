"""The web application: the page, the HTTP interface, one WebSocket for a walk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from worldline.schema import WorldlineError
from worldline.serve import protocol
from worldline.serve.connection import Connection
from worldline.serve.gate import Access, Gate
from worldline.serve.http import CLIENT, refused, routes
from worldline.serve.lobby import Lobby, Rules, Visit
from worldline.serve.protocol import (
    MAX_MESSAGE,
    MESSAGES_PER_S,
    Codec,
    Hello,
    Leave,
    Ping,
    ProtocolError,
    Rtc,
    parse,
)
from worldline.serve.seats import LocalSeat, Seat
from worldline.serve.signalling import offered, peers_on
from worldline.serve.spool import Spool
from worldline.serve.window import TokenBucket
from worldline.stream.engine import Engine

if TYPE_CHECKING:
    from worldline.serve.rtc import Rtc as Peers

LOCAL = ("127.0.0.1", "localhost", "::1")
HELLO_S = 15.0  # for the first message; a busy phone takes some
MAX_BAD_MESSAGES = 50  # of one connection, before it is closed
BURST = 600.0  # messages at once, beside protocol.MESSAGES_PER_S
MAX_THROTTLED = 6000
MAX_CONNECTIONS = 256
logger = logging.getLogger(__name__)


class _Client(StaticFiles):
    """The page's files; a server that was upgraded must not meet an old page."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(
    world: Engine | Callable[[], Engine] | Sequence[Seat],
    *,
    access: Access | None = None,
    rules: Rules | None = None,
    spool: Path | None = None,
    webrtc: Peers | None = None,
) -> FastAPI:
    """The application. world: an engine, a function that loads one, or seats of their own making. spool: an existing
    directory for sessions' files (a temporary one by default). webrtc: clients may ask for a video track of such peers.
    The lobby is `app.state.lobby`."""
    if isinstance(world, Engine):
        engine = world
        seats: Sequence[Seat] = [LocalSeat(lambda: engine)]
    elif callable(world):
        seats = [LocalSeat(world)]
    else:
        seats = world
    lobby = Lobby(seats, Spool(spool or Path(tempfile.mkdtemp(prefix="worldline-"))), rules)
    lobby.webrtc = webrtc is not None
    codec = ThreadPoolExecutor(1, "upload")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(lobby.run())
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        codec.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="worldline", lifespan=lifespan, docs_url=None, redoc_url=None,
        description="A world model that is played in real time. The walk goes over the WebSocket /ws: docs/protocol.md.",
    )  # fmt: skip
    app.state.lobby = lobby
    app.add_middleware(Gate, access=access or Access(), counters=lobby.counters)
    for error in (HTTPException, StarletteHTTPException, RequestValidationError):
        app.add_exception_handler(error, refused)
    app.include_router(routes(lobby, codec))
    app.mount("/client", _Client(directory=CLIENT), name="client")
    connections: set[Connection] = set()

    @app.websocket("/ws")
    async def play(ws: WebSocket) -> None:
        await ws.accept()
        connection = Connection(ws)
        if len(connections) >= MAX_CONNECTIONS:
            lobby.counters["connections_refused"] += 1
            await ws.close(1013, "too many connections")
            return
        connections.add(connection)
        lobby.counters["connections"] += 1
        try:
            await converse(connection, lobby, webrtc)
        finally:
            connections.discard(connection)

    return app


async def converse(connection: Connection, lobby: Lobby, webrtc: Peers | None = None) -> None:
    """One connection, from hello to its end."""
    writing = asyncio.create_task(connection.write())
    tasks = (writing, asyncio.create_task(_read(connection, lobby, webrtc)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if connection.code is None:
            connection.close(1011)  # the client is gone, or reading failed; what waits is of no use
        else:
            await asyncio.wait([writing])  # what waits goes out first
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                lobby.counters["failures"] += 1
                logger.error("a connection failed", exc_info=end)
        if connection.peer is not None:
            await connection.peer.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(connection.ws.close(connection.code or 1011, connection.reason), 2.0)


async def _read(connection: Connection, lobby: Lobby, webrtc: Peers | None) -> None:
    """Messages until the client leaves. What is not of the protocol is answered and counted."""
    visit: Visit | None = None
    bucket = TokenBucket(MESSAGES_PER_S, BURST)
    try:
        while connection.open:
            if not bucket.take(time.monotonic()):
                connection.throttled += 1
                if connection.throttled > MAX_THROTTLED:
                    connection.close(4429, "far too many messages")
                    return
                await asyncio.sleep(bucket.wait())
                continue
            try:
                async with asyncio.timeout(HELLO_S if visit is None else None):
                    received = await connection.ws.receive()
            except TimeoutError:
                connection.close(4400, "no hello came")
                return
            if received["type"] == "websocket.disconnect":
                return
            lobby.counters["messages"] += 1
            try:
                if received.get("text") is None:
                    raise ProtocolError("a binary message; expected JSON text")
                visit = await _take(connection, lobby, visit, received["text"], webrtc)
            except ProtocolError as error:
                await _malformed(connection, lobby, error)
                if visit is None:
                    connection.close(4400, "not of this protocol")
    finally:
        if visit is not None:
            await lobby.leave(visit, connection)


async def _malformed(connection: Connection, lobby: Lobby, error: ProtocolError) -> None:
    lobby.counters["bad_messages"] += 1
    connection.bad += 1
    await connection.send(_text(protocol.error("message", str(error))))
    if connection.bad >= MAX_BAD_MESSAGES:
        connection.close(4400, "not of this protocol")


async def _take(
    connection: Connection, lobby: Lobby, visit: Visit | None, text: str, webrtc: Peers | None
) -> Visit | None:
    """One message. Raises ProtocolError."""
    message = parse(text)
    if visit is None:
        if not isinstance(message, Hello):
            raise ProtocolError("the first message is hello; docs/protocol.md has its fields")
        if message.version != protocol.VERSION:
            said = f"protocol version {message.version}; this server speaks {protocol.VERSION}: reload the page"
            await connection.send(_text(protocol.error("version", said, "never")))
            connection.close(4400, said)
            return None
        return await lobby.enter(connection, message)
    match message:
        case Hello():
            raise ProtocolError("a second hello; a connection says it once")
        case Ping(t):
            await connection.send(_text({"type": "pong", "t": t, "server_ms": 1e3 * time.time()}))
            await lobby.receive(visit, message)  # the walk learns how far its client is
        case Leave():
            lobby.end(visit, "left", "you have left", 1000)
        case Rtc():

            async def refuse(error: ProtocolError) -> None:
                await _malformed(connection, lobby, error)

            await offered(connection, lobby, visit, message, webrtc, refuse)
        case Codec(codec="track") if connection.peer is None or not connection.peer.ready:
            said = "there is no video track; send rtc first and wait until the peers are connected"
            await connection.send(_text(protocol.error("request", said, re=message.id)))
        case _:
            await lobby.receive(visit, message)
    return visit


def _text(message: dict[str, Any]) -> str:
    return json.dumps(message)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one. Raises WorldlineError where the address is not to be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)  # a browser opened before the server runs waits instead of failing
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is taken" if taken else f"is not to be had ({error})"
        raise WorldlineError(f"port {port} of {host} {why}; choose another, or 0 for any free one") from error
    return listener


def access_of(host: str, token: str | None, origins: Sequence[str] = (), insecure: bool = False) -> Access:
    """Who may come in, for an address to listen on. Raises WorldlineError where anybody on the network could."""
    if host not in LOCAL and token is None and not insecure:
        raise WorldlineError(
            f"{host} can be reached from other machines and no token is set: pass --token (or set WORLDLINE_TOKEN), "
            "or --insecure where something before this server asks who comes in"
        )
    if token is not None and len(token) < 8:
        raise WorldlineError(f"a token of {len(token)} characters can be guessed; expected at least 8")
    for origin in origins:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise WorldlineError(f"origin {origin!r}; expected such as https://example.org:8443, without a path")
    return Access(token, frozenset(LOCAL) if host in LOCAL else None, frozenset(origins))


def serve(
    world: Engine | str | Path | Callable[[], Engine] | Sequence[Seat],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    access: Access | None = None,
    rules: Rules | None = None,
    spool: Path | None = None,
    webrtc: bool = False,
    open_browser: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a world until interrupted; the page is there while the world loads.

    world: an engine, a world directory, a function that loads one, or seats. access: None is `access_of(host, None)`.
    webrtc: offer a video track, too, on `host` alone; needs aiortc.
    on_ready: told the page's address once, which holds the token where there is one; the default logs it.
    """
    access = access or access_of(host, None)
    peers = peers_on(host) if webrtc else None
    listener = listen(host, port)
    try:
        loader = (lambda: Engine.load(world)) if isinstance(world, (str, Path)) else world
        app = create_app(loader, access=access, rules=rules, spool=spool, webrtc=peers)
        config = uvicorn.Config(
            app, log_level="info", access_log=False, ws_max_size=MAX_MESSAGE, ws_per_message_deflate=False,
            ws_ping_interval=15.0, ws_ping_timeout=15.0, timeout_graceful_shutdown=5, server_header=False,
        )  # fmt: skip
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/"
        if access.token is not None:
            url += f"?token={access.token}"
        if on_ready is not None:
            on_ready(url)
        else:
            logging.getLogger("uvicorn.error").info("worldline is at %s (Ctrl+C stops it)", url)
        if open_browser:
            import webbrowser

            webbrowser.open(url)
        # uvicorn logs every WebSocket that was answered by a refusal as an application's fault: strangers could fill a disk.
        logging.getLogger("uvicorn.error").addFilter(lambda r: "without completing handshake" not in r.getMessage())
        Server(config).run(sockets=[listener])
    finally:
        listener.close()


class Server(uvicorn.Server):
    """Says goodbye: clients are told, and their walks are at rest, before their sockets close."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Once the signal came."""
        app: Any = self.config.app
        await app.state.lobby.close()
        await asyncio.sleep(0.1)  # what was posted last goes out
        await super().shutdown(sockets)


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)
