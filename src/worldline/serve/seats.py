"""A seat: a device on which one walk at a time is played. The lobby knows seats only by this interface; whether the model
runs in this process or in another is the seat's own affair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from worldline.schema import WorldlineError
from worldline.serve.pictures import jpeg
from worldline.serve.player import Outlet, Player, Threads
from worldline.serve.protocol import Hello, Message
from worldline.serve.spool import Folder
from worldline.serve.walk import facts
from worldline.stream.engine import Engine
from worldline.stream.stages import WORDS, Stage, heard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorldFacts:
    """What is told of a world before and while it is played. hello: see `walk.facts`; spec: `Engine.spec` as a dict;
    thumbnails: JPEG of every start."""

    hello: dict[str, Any]
    spec: dict[str, Any]
    thumbnails: dict[str, bytes]

    @staticmethod
    def of(engine: Engine) -> WorldFacts:
        """Those of a loaded world."""
        thumbnails = {name: jpeg(start.image) for name, start in engine.starts.items()}
        return WorldFacts(facts(engine), vars(engine.spec).copy(), thumbnails)


@dataclass
class SeatState:
    """How far a seat is. stage: one of `stream.stages`, ready or failed; since: when loading began."""

    stage: str = "weights"
    message: str = "loading the world"
    since: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        """Whether a walk can begin."""
        return self.stage == "ready"

    def at(self, stage: Stage) -> SeatState:
        """The same loading, further on."""
        return SeatState(stage, WORDS[stage], self.since)


class WalkError(Exception):
    """A walk ended by itself: a fault of the server (`internal`), or its process died (`worker`)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WalkHandle(Protocol):
    """A walk in play."""

    ended: asyncio.Future[None]  # raises WalkError when the walk ends by itself; never before `close`

    async def receive(self, message: Message) -> None:
        """A client's message, Attach or Detach."""
        ...

    async def close(self) -> None:
        """End it; the seat is free when this returns."""
        ...


class Seat(Protocol):
    """One device."""

    state: SeatState
    facts: WorldFacts | None  # None until it has been ready once

    async def start(self, changed: Callable[[], None]) -> None:
        """Load; returns at once. changed: called when `state` did."""
        ...

    async def open(self, hello: Hello, codec: str, folder: Folder, outlet: Outlet) -> WalkHandle:
        """Begin a walk. Raises WalkError."""
        ...

    async def close(self) -> None:
        """Give the device up."""
        ...


class LocalSeat:
    """A world in this process. load: makes the engine, in the thread in which the model will run."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        self.state, self.facts = SeatState(), None
        self._load = load
        self._threads = Threads(ThreadPoolExecutor(1, "world"), ThreadPoolExecutor(1, "codec"))
        self._engine: Engine | None = None
        self._loading: asyncio.Task[None] | None = None

    facts: WorldFacts | None

    async def start(self, changed: Callable[[], None]) -> None:
        """Load in the background."""
        self._loading = asyncio.create_task(self._start(changed))

    async def _start(self, changed: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()

        def arrive(stage: Stage) -> None:
            self.state = self.state.at(stage)
            changed()

        def load() -> Engine:
            with heard(lambda stage: loop.call_soon_threadsafe(arrive, stage)):
                return self._load()

        try:
            self._engine = await loop.run_in_executor(self._threads.world, load)
            self.facts = await loop.run_in_executor(self._threads.codec, WorldFacts.of, self._engine)
            self.state = SeatState("ready", "ready")
        except Exception as error:
            said = str(error) if isinstance(error, WorldlineError) else f"{type(error).__name__}; see the server's log"
            logger.error("the world could not be loaded", exc_info=error)
            self.state = SeatState("failed", said)
        changed()

    async def open(self, hello: Hello, codec: str, folder: Folder, outlet: Outlet) -> WalkHandle:
        """Begin a walk."""
        if self._engine is None:
            raise WalkError("internal", "the world is not loaded")
        return LocalWalk(Player(self._engine, self._threads, folder, outlet, hello, codec))

    async def close(self) -> None:
        """Wait for the threads."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        for pool in (self._threads.world, self._threads.codec):
            pool.shutdown(wait=False, cancel_futures=True)


class LocalWalk:
    """A player in a task of this process."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(player.run())
        self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        logger.error("a player's loop failed", exc_info=task.exception())
        if not self.ended.done():
            self.ended.set_exception(WalkError("internal", "the server failed; see its log"))
            self.ended.exception()  # the lobby may have left already

    async def receive(self, message: Message) -> None:
        """To the player."""
        await self.player.receive(message)

    async def close(self) -> None:
        """Stop playing and wait for the model to be at rest."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([self._task])
        self.ended.cancel()
