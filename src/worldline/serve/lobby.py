"""Who plays, who waits, and for how long: sessions, the queue, leases, resuming.

A visit is queued, then live on a seat, then ended; it may be without a connection in the first two for `resume_s`. The
lobby's clock is handed to it, so that its rules are tested in virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from worldline.serve import protocol
from worldline.serve.connection import Connection
from worldline.serve.protocol import Attach, Command, Detach, Hello, Input, Message
from worldline.serve.seats import Seat, SeatState, WalkError, WalkHandle, WorldFacts
from worldline.serve.spool import Folder, Spool

TICK_S = 0.25
NOTICE_S = 15.0  # before a seat is taken away
KEEP_FILES_S = 600.0  # after a session's end
SCENE = '{"type": "scene"'
State = Literal["queued", "live", "ended"]
NEXT: dict[State, tuple[State, ...]] = {"queued": ("live", "ended"), "live": ("ended",), "ended": ()}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Times in seconds; None is no limit."""

    lease_s: float | None = None  # a seat is its player's for so long, however many wait
    idle_s: float | None = None  # without any input
    total_s: float | None = None  # of one visit's play
    resume_s: float = 30.0  # a walk is kept without a connection
    resume_wanted_s: float = 8.0  # the same while others wait for its seat
    queue: int = 32  # visits that may wait


@dataclass(eq=False)
class Visit:
    """One client's stay, over all its connections. secret: with which it is resumed; session: its name for others."""

    hello: Hello
    entered: float
    session: str = field(default_factory=lambda: secrets.token_hex(6))
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    state: State = "queued"
    connection: Connection | None = None
    away_since: float | None = None
    place: Place | None = None
    walk: WalkHandle | None = None
    began: float = 0.0
    active: float = 0.0  # the last input
    holding: bool = False  # keys or sticks
    wanted_since: float | None = None  # others wait for the seat
    told: Any = None  # the last position or lease notice

    def go(self, state: State) -> None:
        """Another state; only those of NEXT follow."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a visit cannot go from {self.state} to {state}")
        self.state = state

    async def send(self, message: str | bytes) -> None:
        """From the walk to whoever is connected; a frame that was on its way to the connection before is dropped."""
        connection = self.connection
        if connection is None:
            return
        if isinstance(message, bytes):
            if not connection.scened:
                return
        elif message.startswith(SCENE):
            connection.scened = True
            if connection.peer is not None:
                connection.peer.forget()
        await connection.send(message)


@dataclass(eq=False)
class Place:
    """A seat and who sits there."""

    seat: Seat
    visit: Visit | None = None


class Lobby:
    """All visits and seats of a server."""

    def __init__(
        self,
        seats: Sequence[Seat],
        spool: Spool,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules, self.spool, self.clock = rules or Rules(), spool, clock
        self.places = [Place(seat) for seat in seats]
        self.queue: deque[Visit] = deque()
        self.visits: dict[str, Visit] = {}  # by secret, those not ended
        self.counters: Counter[str] = Counter()
        self.closing = False
        self.webrtc = False  # whether clients may ask for a video track
        self._played: deque[float] = deque(maxlen=16)  # seconds of the last visits
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stale: deque[tuple[float, str]] = deque()  # ended sessions that may have files
        self._ticking = self._again = False

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> WorldFacts | None:
        """The world's, once any seat has loaded it."""
        return next((p.seat.facts for p in self.places if p.seat.facts is not None), None)

    @property
    def ready(self) -> bool:
        """Whether a walk can begin or go on."""
        return not self.closing and any(p.seat.state.ready for p in self.places)

    @property
    def failed(self) -> SeatState | None:
        """Why no seat will ever be ready."""
        states = [p.seat.state for p in self.places]
        return states[0] if all(s.stage == "failed" for s in states) else None

    @property
    def live(self) -> list[Visit]:
        """Those who play."""
        return [p.visit for p in self.places if p.visit is not None]

    def folder(self, visit: Visit) -> Folder:
        """Where its files lie."""
        return self.spool.folder(visit.session)

    # -- coming and going ----------------------------------------------------------------------------------------------

    async def enter(self, connection: Connection, hello: Hello) -> Visit | None:
        """A client has said hello: its earlier visit, or a new one. None where it was sent away."""
        self.tick()  # a secret may have run out since the last one
        old = self.visits.get(hello.resume) if hello.resume is not None else None
        if old is not None:
            await self._take_over(old, connection, hello)
            return old
        if self.closing or self.failed is not None:
            failed = self.failed
            self._refuse(connection, "loading" if failed else "internal", failed.message if failed else "going down")
            return None
        if len(self.queue) >= self.rules.queue + sum(p.visit is None for p in self.places):
            self.counters["queue_full"] += 1
            connection.post(protocol.error("queue_full", "too many wait already; try again later", "later", after=30.0))
            connection.close(1013, "the queue is full")
            return None
        visit = Visit(hello, self.clock(), connection=connection)
        self.visits[visit.secret] = visit
        self.queue.append(visit)
        self.counters["visits"] += 1
        self.tick()
        return visit

    def _refuse(self, connection: Connection, code: str, message: str) -> None:
        connection.post(protocol.error(code, message, "never" if code == "loading" else "reconnect", after=3.0))
        connection.close(1011 if code == "loading" else 1012, message)

    async def _take_over(self, visit: Visit, connection: Connection, hello: Hello) -> None:
        if visit.connection is not None:
            visit.connection.post(self._ended("replaced", "another connection goes on with this walk", "never"))
            visit.connection.close(4409, "taken over")
        visit.connection, visit.away_since, visit.told, visit.hello = connection, None, None, hello
        visit.active, visit.holding = self.clock(), False
        self.counters["resumed"] += 1
        if visit.state == "live":
            self._greet(visit)
            self._say_live(visit, resumed=True)
            if visit.walk is not None:
                await visit.walk.receive(Attach(self._codec(hello)))
        self.tick()

    async def leave(self, visit: Visit, connection: Connection) -> None:
        """A connection is gone; the visit waits for another one."""
        if visit.connection is not connection or visit.state == "ended":
            return
        visit.connection, visit.away_since = None, self.clock()
        if visit.walk is not None:
            await visit.walk.receive(Detach())
        self.tick()

    async def receive(self, visit: Visit, message: Message) -> None:
        """A message of the walk's."""
        if isinstance(message, Input):
            visit.holding = bool(message.keys or any(message.axes))
            visit.active = self.clock()
        elif isinstance(message, Command):
            visit.active = self.clock()
            if visit.walk is None:
                if visit.connection is not None:
                    said = "there is no walk yet: wait for state live"
                    visit.connection.post(protocol.error("request", said, re=message.id))
                return
        if visit.walk is not None:
            await visit.walk.receive(message)

    def end(self, visit: Visit, reason: str, message: str, code: int, retry: protocol.Retry = "never") -> None:
        """A visit is over: its client is told, its seat is freed when the model is at rest."""
        if visit.state == "ended":
            return
        visit.go("ended")
        self.counters[f"ended_{reason}"] += 1
        del self.visits[visit.secret]
        if visit in self.queue:
            self.queue.remove(visit)
        if visit.connection is not None:
            visit.connection.post(self._ended(reason, message, retry))
            visit.connection.close(code, message)
            visit.connection = None
        self._stale.append((self.clock(), visit.session))
        if visit.place is not None:
            self._played.append(self.clock() - visit.began)
            self._do(self._vacate(visit.place, visit))
        self.tick()

    async def _vacate(self, place: Place, visit: Visit) -> None:
        if visit.walk is not None:
            await visit.walk.close()
            place.visit = None  # before `open` has returned, `_begin` does it
        self.tick()

    # -- time ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Load the seats and keep the time, until cancelled."""
        for place in self.places:
            await place.seat.start(self.tick)
        try:
            while True:
                self.tick()
                await asyncio.sleep(TICK_S)
        finally:
            await self.close()

    async def close(self) -> None:
        """Tell everybody, wait for the walks, give the devices up. A second time does nothing."""
        if self.closing:
            return
        self.closing = True
        for visit in list(self.visits.values()):
            self.end(visit, "shutdown", "the server goes down", 1012, "reconnect")
        while self._tasks:
            await asyncio.wait(self._tasks)
        for place in self.places:
            await place.seat.close()
        self.spool.close()

    def tick(self) -> None:
        """Whatever is due by the clock: seats given and taken, those who wait told."""
        self._again = True
        while self._again and not self._ticking:  # what a tick ends asks for another one
            self._again, self._ticking = False, True
            try:
                self._tick(self.clock())
            finally:
                self._ticking = False

    def _tick(self, now: float) -> None:
        kept = self.rules.resume_s
        if any(v.connection is not None for v in self.queue):
            kept = min(kept, self.rules.resume_wanted_s)
        for visit in list(self.visits.values()):
            limit = kept if visit.state == "live" else self.rules.resume_s
            if visit.away_since is not None and now - visit.away_since > limit:
                self.end(visit, "left", "nobody came back", 1000)
        failed = self.failed
        for visit in list(self.queue) if failed is not None else []:
            assert failed is not None
            self.end(visit, "failed", f"the world could not be loaded: {failed.message}", 1011)
        for place in self.places:
            if place.visit is None and place.seat.state.ready and not self.closing:
                first = next((v for v in self.queue if v.connection is not None), None)
                if first is not None:
                    self._seat(place, first)
        for visit in self.live:
            self._lease(visit, now)
        self._tell_waiting(now)
        while self._stale and now - self._stale[0][0] > KEEP_FILES_S:
            self.spool.drop(self._stale.popleft()[1])

    def _lease(self, visit: Visit, now: float) -> None:
        """End a visit whose time is up, and say so before."""
        if visit.state != "live":
            return
        r, waiting = self.rules, any(v.connection is not None for v in self.queue)
        if visit.holding and visit.connection is not None:
            visit.active = now
        left: dict[str, float] = {}
        if r.total_s is not None:
            left["total"] = visit.began + r.total_s - now
        if r.idle_s is not None:
            left["idle"] = visit.active + r.idle_s - now
        if r.lease_s is not None and waiting:
            # Who waits is told at once, who plays has the notice's time even where the lease is long over.
            if visit.wanted_since is None:
                visit.wanted_since = now
            left["waiting"] = max(visit.began + r.lease_s, visit.wanted_since + NOTICE_S) - now
        else:
            visit.wanted_since = None
        if not left:
            self._notice(visit, None, 0.0)
            return
        reason = min(left, key=lambda k: left[k])
        if left[reason] <= 0:
            told = {"total": "the time of a visit is up", "idle": "nothing was pressed for long",
                    "waiting": "others wait for the seat"}  # fmt: skip
            kind, code = {"total": ("total", 4410), "idle": ("idle", 4408), "waiting": ("lease", 4410)}[reason]
            self.end(visit, kind, told[reason], code, "later")
        elif left[reason] <= NOTICE_S:
            self._notice(visit, reason, left[reason])
        else:
            self._notice(visit, None, 0.0)

    def _notice(self, visit: Visit, reason: str | None, left: float) -> None:
        now = None if reason is None else (reason, int(left))
        if visit.told == now or visit.connection is None:
            return
        visit.connection.post(
            {"type": "lease", "left_s": None if now is None else now[1], "reason": reason or "waiting"}
        )
        visit.told = now

    def _tell_waiting(self, now: float) -> None:
        """Position and expected time, to those for whom they changed; while the world loads, how it goes."""
        eta = self.eta()
        position = 0
        for visit in self.queue:
            if visit.connection is None:
                continue
            position += 1
            if self.facts is None:
                stage = self.places[0].seat.state
                elapsed = now - min(now, stage.since)
                told: Any = (stage.stage, int(elapsed))
                message = {"type": "state", "state": "loading", "stage": stage.stage, "message": stage.message,
                           "elapsed_s": round(elapsed, 1)}  # fmt: skip
            else:
                told = (position, len(self.queue))
                message = {
                    "type": "state", "state": "queued", "position": position, "of": len(self.queue),
                    "seats": len(self.places), "eta_s": None if eta is None else round(eta * position),
                    "resume": visit.secret, "resume_s": self.rules.resume_s,
                }  # fmt: skip
            if told != visit.told:
                visit.told = told
                self._greet(visit)
                visit.connection.post(message)

    def eta(self) -> float | None:
        """Seconds a place in the queue costs: what visits took lately, or may take."""
        typical = sum(self._played) / len(self._played) if self._played else self.rules.lease_s
        return None if typical is None else typical / max(1, len(self.places))

    # -- seats ---------------------------------------------------------------------------------------------------------

    def _seat(self, place: Place, visit: Visit) -> None:
        self.queue.remove(visit)
        visit.go("live")
        visit.place, place.visit = place, visit
        visit.began = visit.active = self.clock()
        visit.told = None
        self._greet(visit)
        self._say_live(visit, resumed=False)
        self._do(self._begin(place, visit))

    async def _begin(self, place: Place, visit: Visit) -> None:
        """Open the walk; a client may come, go or be replaced meanwhile."""
        connection = visit.connection
        try:
            walk = await place.seat.open(visit.hello, self._codec(visit.hello), self.folder(visit), visit)
        except WalkError as error:
            place.visit = None
            self.end(visit, error.code, str(error), 1012, "reconnect")
            return
        visit.walk = walk
        if visit.state == "ended":
            await self._vacate(place, visit)
            return
        walk.ended.add_done_callback(lambda ended: self._walk_ended(visit, ended))
        if visit.connection is None:
            await walk.receive(Detach())
        elif visit.connection is not connection:
            await walk.receive(Attach(self._codec(visit.hello)))

    def _walk_ended(self, visit: Visit, ended: asyncio.Future[None]) -> None:
        if not ended.cancelled() and isinstance(error := ended.exception(), WalkError):
            self.counters["failures"] += 1
            if visit.connection is not None:
                visit.connection.post(protocol.error(error.code, str(error), "reconnect", after=2.0))
            reason, code = ("worker", 1012) if error.code == "worker" else ("failed", 1011)
            self.end(visit, reason, str(error), code, "reconnect")

    def _codec(self, hello: Hello) -> str:
        facts = self.facts
        offered = facts.hello["codecs"] if facts is not None else ["jpeg"]
        return next((c for c in hello.codecs if c in offered), "jpeg")

    @property
    def tracks(self) -> bool:
        """Whether this world's pictures can go over a video track: colour is halved both ways there."""
        facts = self.facts
        return self.webrtc and facts is not None and not (facts.hello["height"] % 2 or facts.hello["width"] % 2)

    def _greet(self, visit: Visit) -> None:
        """The hello, once a connection."""
        if visit.connection is None or visit.connection.greeted or self.facts is None:
            return
        visit.connection.greeted = True
        features = [*self.facts.hello["features"], *(["webrtc"] if self.tracks else [])]
        visit.connection.post(self.facts.hello | {"codec": self._codec(visit.hello), "features": features})

    def _say_live(self, visit: Visit, resumed: bool) -> None:
        if visit.connection is None:
            return
        r = self.rules
        visit.connection.post(
            {"type": "state", "state": "live", "session": visit.session, "resume": visit.secret, "resume_s": r.resume_s,
             "resumed": resumed, "lease": {"lease_s": r.lease_s, "idle_s": r.idle_s, "total_s": r.total_s}}
        )  # fmt: skip

    @staticmethod
    def _ended(reason: str, message: str, retry: protocol.Retry) -> dict[str, Any]:
        after = {"reconnect": 2.0, "later": 0.0}.get(retry)
        return {"type": "state", "state": "ended", "reason": reason, "message": message, "retry": retry,
                "retry_after_s": after}  # fmt: skip

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            if (error := task.exception()) is not None:
                self.counters["failures"] += 1
                logger.error("the lobby failed", exc_info=error)
