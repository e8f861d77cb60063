"""A seat in a process of its own: one engine, one walk at a time, restarted when it dies.

The router (the process with the lobby) keeps one connection to the worker for each walk, over a Unix socket in a private
directory, for as long as the walk lives: clients come and go at the router, so a walk stays where it began. Over it go the
client's own messages, `attach` and `detach`, and the player's answers and frames, unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from worldline.serve.player import Outlet, Player, Threads
from worldline.serve.protocol import Hello, Message, dump, parse_inside
from worldline.serve.seats import SeatState, WalkError, WalkHandle, WorldFacts
from worldline.serve.spool import Folder
from worldline.stream.engine import Engine
from worldline.stream.stages import heard

RESTART_S = (0.5, 1.0, 2.0, 5.0, 15.0)  # before the next start after one, two, ... deaths in a row
STOP_S = 5.0  # for a worker to end by itself
logger = logging.getLogger(__name__)


class WorkerSeat:
    """load: makes the engine; it is called in the worker, so it has to be picklable (`functools.partial` of
    `Engine.load`)."""

    facts: WorldFacts | None

    def __init__(self, load: Callable[[], Engine], name: str = "0") -> None:
        self.state, self.facts, self.name = SeatState(), None, name
        self.process: multiprocessing.process.BaseProcess | None = None
        self._load, self._deaths = load, 0
        self._folder = Path(tempfile.mkdtemp(prefix="worldline-worker-"))
        self._watching: asyncio.Task[None] | None = None
        self._walks: set[WorkerWalk] = set()

    @property
    def _socket(self) -> str:
        return str(self._folder / "walks")

    async def start(self, changed: Callable[[], None]) -> None:
        """Start the process, and again whenever it dies."""
        self._watching = asyncio.create_task(self._watch(changed))

    async def _watch(self, changed: Callable[[], None]) -> None:
        while True:
            Path(self._socket).unlink(missing_ok=True)
            ours, theirs = multiprocessing.Pipe()
            context = multiprocessing.get_context("spawn")
            args = (self._load, self._socket, theirs)
            self.process = context.Process(target=run_worker, args=args, name=f"worldline-{self.name}", daemon=True)
            self.process.start()
            theirs.close()
            try:
                async for told in _messages(ours):
                    if isinstance(told, WorldFacts):
                        self.facts, self.state, self._deaths = told, SeatState("ready", "ready"), 0
                    else:
                        self.state = told
                    changed()
            finally:
                ours.close()
            await asyncio.to_thread(self.process.join)
            if self.state.stage == "failed":
                return  # it would fail again
            wait = RESTART_S[min(self._deaths, len(RESTART_S) - 1)]
            logger.error("worker %s died (exit code %s); again in %g s", self.name, self.process.exitcode, wait)
            self._deaths += 1
            self.state = SeatState(message="starting again after its process died")
            for walk in list(self._walks):
                walk.died()
            changed()
            await asyncio.sleep(wait)

    async def open(self, hello: Hello, codec: str, folder: Folder, outlet: Outlet) -> WalkHandle:
        """Begin a walk there."""
        from websockets.asyncio.client import unix_connect
        from websockets.exceptions import WebSocketException

        try:
            socket = await unix_connect(
                self._socket, uri="ws://worker/", max_size=None, compression=None, proxy=None, ping_interval=None
            )
            await socket.send(json.dumps({"hello": dump(hello), "codec": codec, "folder": str(folder.path)}))
        except (OSError, WebSocketException) as error:
            raise WalkError("worker", "the process of this seat is not there; it is being started again") from error
        walk = WorkerWalk(socket, outlet, self._walks)
        self._walks.add(walk)
        return walk

    async def close(self) -> None:
        """End the process."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self.process is not None and self.process.is_alive():
            self.process.terminate()
            await asyncio.to_thread(self.process.join, STOP_S)
            if self.process.is_alive():
                self.process.kill()
                await asyncio.to_thread(self.process.join)
        Path(self._socket).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class WorkerWalk:
    """The router's end of a walk in a worker."""

    def __init__(self, socket: Any, outlet: Outlet, among: set[WorkerWalk]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket, self._outlet, self._among = socket, outlet, among
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            async for message in self._socket:
                await self._outlet.send(message)
        except ConnectionClosed:
            pass
        self.died()

    def died(self) -> None:
        """The worker, or its player, is gone."""
        if not self.ended.done():
            self.ended.set_exception(WalkError("worker", "the process that held this walk died"))
            self.ended.exception()  # the lobby may have left already

    async def receive(self, message: Message) -> None:
        """To the worker; what comes too late is dropped."""
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(dump(message))

    async def close(self) -> None:
        """End the walk: the worker closes its end when the model is at rest."""
        self.ended.cancel()
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await self._socket.close()
        await self._socket.wait_closed()
        self._among.discard(self)


async def _messages(pipe: Pipe) -> Any:
    """What a worker tells, until its end closes."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            while pipe.poll():
                yield pipe.recv()
    except (EOFError, OSError):
        return
    finally:
        loop.remove_reader(pipe.fileno())


# -- in the worker -----------------------------------------------------------------------------------------------------


def run_worker(load: Callable[[], Engine], path: str, pipe: Pipe) -> None:
    """The worker's main: load, tell how it goes, play walks until ended or orphaned."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(processName)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the router ends its workers
    asyncio.run(_work(load, path, pipe))


async def _work(load: Callable[[], Engine], path: str, pipe: Pipe) -> None:
    from websockets.asyncio.server import unix_serve

    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_reader(pipe.fileno(), over.set)  # nothing is ever said to a worker: its router is gone
    threads = Threads(ThreadPoolExecutor(1, "world"), ThreadPoolExecutor(1, "codec"))
    began = SeatState()
    pipe.send(began)

    def loading() -> Engine:
        with heard(lambda stage: pipe.send(began.at(stage))):
            return load()

    try:
        engine = await loop.run_in_executor(threads.world, loading)
        facts = WorldFacts.of(engine)
    except Exception as error:
        logger.error("the world could not be loaded", exc_info=error)
        pipe.send(SeatState("failed", str(error) or type(error).__name__))
        return

    async def walk(socket: Any) -> None:
        await _walk(socket, engine, threads)

    async with unix_serve(walk, path, max_size=None, compression=None, ping_interval=None):
        pipe.send(facts)
        await over.wait()


async def _walk(socket: Any, engine: Engine, threads: Threads) -> None:
    """One walk, for as long as the router holds its connection."""
    first = json.loads(await socket.recv())
    hello = parse_inside(first["hello"])
    assert isinstance(hello, Hello)
    player = Player(engine, threads, Folder(Path(first["folder"])), _Answers(socket), hello, first["codec"])
    playing = asyncio.create_task(player.run())
    reading = asyncio.create_task(_receive(socket, player))
    try:
        await asyncio.wait((playing, reading), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (playing, reading):
            task.cancel()
        for end in await asyncio.gather(playing, reading, return_exceptions=True):
            if isinstance(end, Exception):
                logger.error("a walk failed", exc_info=end)


async def _receive(socket: Any, player: Player) -> None:
    async for text in socket:
        await player.receive(parse_inside(text))


class _Answers:
    """A player's outlet to the router."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def send(self, message: str | bytes) -> None:
        """One message; a router that is gone takes none."""
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(message)
