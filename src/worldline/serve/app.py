"""The web application: one page, one WebSocket, one player at a time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from worldline.schema import WorldlineError
from worldline.serve.player import Player, hello, jpeg
from worldline.serve.protocol import MAX_MESSAGE, ProtocolError, parse
from worldline.stream.engine import Engine

CLIENT = Path(__file__).parent / "client"
LOCAL = ("127.0.0.1", "localhost", "::1")
MAX_BAD_MESSAGES = 50  # of one connection, before it is closed
logger = logging.getLogger(__name__)
T = TypeVar("T")


def create_app(engine: Engine, allowed_hosts: list[str] | None = None) -> FastAPI:
    """The application of one engine. allowed_hosts: names a request may address it by (against DNS rebinding)."""
    worker = ThreadPoolExecutor(1, thread_name_prefix="world")
    seat = asyncio.Lock()
    counters: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="worldline", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.counters = counters
    if allowed_hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts)
    app.mount("/client", StaticFiles(directory=CLIENT), name="client")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(CLIENT / "index.html")

    @app.get("/healthz")
    async def health() -> dict:
        return {"status": "ok", "playing": seat.locked(), "counters": dict(counters)}

    @app.get("/api/spec")
    async def spec() -> dict:
        return dataclasses.asdict(engine.spec)

    @app.get("/api/starts")
    async def starts() -> list[dict]:
        return [
            {"name": s.name, "caption": s.caption, "thumbnail": f"/api/starts/{s.name}.jpg"}
            for s in engine.starts.values()
        ]

    @app.get("/api/starts/{name}.jpg")
    async def thumbnail(name: str) -> Response:
        if name not in engine.starts:
            raise HTTPException(404, f"no start {name!r}")
        return Response(jpeg(engine.starts[name].image), media_type="image/jpeg")

    @app.websocket("/ws")
    async def play(ws: WebSocket) -> None:
        if not same_origin(ws):
            counters["foreign_origin"] += 1
            await ws.close(1008, "open the page this server serves")
            return
        await ws.accept()
        if seat.locked():
            counters["busy"] += 1
            await ws.send_json({"type": "busy", "message": "Someone else is walking here; there is one seat."})
            await ws.close(1013, "busy")
            return
        async with seat:
            counters["players"] += 1
            with contextlib.suppress(ClientGone):
                await _converse(ws, engine, worker, counters)

    return app


class ClientGone(Exception):
    """The client left while something was on its way to it."""


def _to_client(send: Callable[[T], Awaitable[None]]) -> Callable[[T], Awaitable[None]]:
    """A send whose one failure has one name: for a closed socket starlette raises RuntimeError, as torch does."""

    async def sending(message: T) -> None:
        try:
            await send(message)
        except (RuntimeError, WebSocketDisconnect) as error:
            raise ClientGone from error

    return sending


async def _converse(ws: WebSocket, engine: Engine, worker: ThreadPoolExecutor, counters: Counter[str]) -> None:
    """Read and play until either ends."""
    send_bytes, send_json = _to_client(ws.send_bytes), _to_client(ws.send_json)
    await send_json(hello(engine))
    player = Player(engine, worker, send_bytes, send_json)
    tasks = [asyncio.create_task(_read(ws, player, send_json, counters)), asyncio.create_task(player.run())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ends:
        if isinstance(error, BaseExceptionGroup):
            error = error.split((ClientGone, asyncio.CancelledError))[1]
        if error is None or isinstance(error, (ClientGone, asyncio.CancelledError)):
            continue
        counters["failures"] += 1
        logger.error("the player's loop failed", exc_info=error)
        await send_json({"type": "error", "code": "internal", "message": "The server failed; see its log."})
        await ws.close(1011, "internal error")


async def _read(
    ws: WebSocket, player: Player, send_json: Callable[[dict[str, Any]], Awaitable[None]], counters: Counter[str]
) -> None:
    """Messages until the client leaves. What is not of the protocol is answered and counted, never fatal by itself."""
    bad = 0
    while bad < MAX_BAD_MESSAGES:
        message = await ws.receive()
        if message["type"] == "websocket.disconnect":
            return
        try:
            if message.get("text") is None:
                raise ProtocolError("a binary message; expected JSON text")
            player.receive(parse(message["text"]))
        except ProtocolError as error:
            bad += 1
            counters["bad_messages"] += 1
            await send_json({"type": "error", "code": "message", "message": str(error)})
    await ws.close(1008, "too many messages that are not of the protocol")


def same_origin(ws: WebSocket) -> bool:
    """Browsers send the page's origin: only our own page may steer. Other clients send none."""
    origin = ws.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == ws.headers.get("host")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any free one. Raises WorldlineError where the address is not to be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)  # a browser opened before the server runs waits instead of failing
    except OSError as error:
        listener.close()
        why = "is taken" if error.errno == errno.EADDRINUSE else f"is not to be had ({error.strerror})"
        raise WorldlineError(f"port {port} of {host} {why}; choose another, or 0 for any free one") from error
    return listener


def serve(
    world: Engine | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a world until interrupted.

    world: an engine, or a world directory to load. on_ready: told the page's address once; the default logs it.
    """
    import uvicorn

    listener = listen(host, port)  # first, as a taken port should not cost the loading
    try:
        engine = world if isinstance(world, Engine) else Engine.load(world)
        app = create_app(engine, allowed_hosts=[*LOCAL, "[::1]"] if host in LOCAL else None)
        config = uvicorn.Config(
            app, log_level="info", access_log=False, ws_max_size=MAX_MESSAGE, timeout_graceful_shutdown=2
        )
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/"
        if on_ready is not None:
            on_ready(url)
        else:
            logging.getLogger("uvicorn.error").info("worldline: %s is at %s (Ctrl+C stops it)", engine.name, url)
        if open_browser:
            import webbrowser

            webbrowser.open(url)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()
