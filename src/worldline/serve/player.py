"""One walk as it is played: messages in, frames out, on time.

The model runs in one worker thread. A chunk is started as late as it may be, answers the newest input, is queued for
sending frame by frame at the world's rate, and only then committed. A slow client skips to the newest frame; a client
that takes nothing, or is away, makes the world stand. No queue grows: at most two chunks of frames and MAX_COMMANDS
messages wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from worldline.schema import Controls, WorldlineError
from worldline.serve import protocol
from worldline.serve.inputs import Applied, InputState, applied
from worldline.serve.pictures import Encoder, codecs_for, encoder_of
from worldline.serve.protocol import (
    Ack,
    Attach,
    Codec,
    Command,
    Detach,
    Frame,
    Hello,
    Input,
    Keyframe,
    Load,
    Message,
    Pause,
    Ping,
    Play,
    Prompt,
    Record,
    Reset,
    Rewind,
    Save,
    SlotGo,
    SlotSave,
    Step,
)
from worldline.serve.recorder import RECORD_S, Recorder
from worldline.serve.spool import Folder, describe
from worldline.serve.walk import Place, Script, Walk
from worldline.serve.window import SendWindow
from worldline.stream.engine import Engine
from worldline.stream.pacing import Pacer

T = TypeVar("T")
MAX_COMMANDS = 32  # that may wait
MAX_NETWORK_S = 2.0  # that a client may claim
MOVES = (Reset, Rewind, SlotGo, Load)  # commands that begin a new generation; a later one replaces a waiting one
logger = logging.getLogger(__name__)


class Outlet(Protocol):
    """Where a player's messages go. Waits while the client cannot take more; never raises, a client may be gone."""

    async def send(self, message: str | bytes) -> None:
        """JSON text or a frame."""
        ...


@dataclass(frozen=True)
class Threads:
    """Where blocking work is done: `world` for the model (one thread: compiled graphs belong to it), `codec` for
    pictures."""

    world: Executor
    codec: Executor


@dataclass(frozen=True)
class _Waiting:
    """A picture to be sent at `due`."""

    due: float
    ready: float
    frame: int
    chunk: int
    flags: int
    pixels: np.ndarray
    applied: Applied
    compute_ms: float


class Player:
    """`receive` takes messages at any time; `run` plays until cancelled."""

    def __init__(
        self, engine: Engine, threads: Threads, folder: Folder, outlet: Outlet, hello: Hello, codec: str
    ) -> None:
        """hello: how the walk begins; codec: what the client takes, one of `codecs_for` this world's size."""
        self.engine, self.generation = engine, 0
        spec = engine.spec
        self._frames, self._spec, self._threads, self._folder, self._outlet = (
            spec.frames_per_chunk, spec, threads, folder, outlet
        )  # fmt: skip
        self._walk = Walk(engine, folder)
        self._hello, self._codec = hello, codec
        self._encoder: Encoder | None = None
        self._inputs = InputState(spec.turn_deg_per_frame, spec.max_turn_deg_per_frame)
        self._pacer = Pacer(spec.fps, self._frames)
        self._window = SendWindow(spec.fps, self._frames / spec.fps)
        self._commands: deque[Command | Attach] = deque()
        self._script: Script | None = None
        self._recorder: Recorder | None = None
        self._away = self._paused = self._stepping = self._halted = False
        self._stood_at: float | None = None
        self._queue: deque[_Waiting] = deque()
        self._skipped, self._key = 0, True
        self._last: _Waiting | None = None  # what the client sees
        self._changed, self._queued, self._order = asyncio.Event(), asyncio.Event(), asyncio.Lock()

    # -- messages ------------------------------------------------------------------------------------------------------

    async def receive(self, message: Message) -> None:
        """Take a message; waits only where the client does not take its answer."""
        match message:
            case Input():
                self._inputs.update(message)  # read when a chunk starts; wakes nobody
                if self._script is not None and self._script.yields and self._inputs.active:
                    await self._end_script(completed=False)
                return
            case Ack():
                if message.generation == self.generation:
                    self._window.acked(message.frame, time.perf_counter())
                    self._queued.set()
            case Ping(rtt_ms=rtt):
                self._window.network = min(rtt / 1e3, MAX_NETWORK_S)
            case Detach():
                self._away = True
                self._stand()
            case Attach():
                self._away = True  # until the new client knows where the walk stands
                self._stand()
                self._commands.appendleft(message)
            case Pause(on=True):
                self._paused = True  # at once; the answer comes in its turn
                self._stand()
                self._commands.append(message)
            case Command():
                await self._enqueue(message)
        self._changed.set()

    async def _enqueue(self, command: Command) -> None:
        if isinstance(command, MOVES):
            for old in [c for c in self._commands if isinstance(c, MOVES)]:
                self._commands.remove(old)
                await self._fail(old, "replaced", "a later command took its place", "never")
        if len(self._commands) >= MAX_COMMANDS:
            await self._fail(command, "rate", f"{MAX_COMMANDS} commands wait already", "later", after=1.0)
            return
        self._commands.append(command)

    async def _say(self, message: dict[str, Any]) -> None:
        await self._outlet.send(json.dumps(message))

    async def _done(self, command: Command, **more: Any) -> None:
        await self._say({"type": "done", "id": command.id, "of": protocol.NAMES_OF[type(command)], **more})

    async def _fail(
        self, command: Command | None, code: str, message: str, retry: protocol.Retry, after: float | None = None
    ) -> None:
        await self._say(protocol.error(code, message, retry, re=None if command is None else command.id, after=after))

    # -- the loop ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Play until cancelled. Faults of the world are told to the client, who may reset."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send())
                tasks.create_task(self._play())
        finally:
            if self._recorder is not None:
                self._recorder.abandon()
            if self._encoder is not None:
                self._encoder.close()

    async def _play(self) -> None:
        await self._use_codec(self._codec)
        await self._begin()
        while True:
            await self._until_due()
            if self._commands:
                await self._obey(self._commands.popleft())
            else:
                await self._chunk()

    async def _begin(self) -> None:
        """The walk that the hello asked for, or the world's own start where there is none such."""
        asked = Reset(None, self._hello.start, None, self._hello.prompt, self._hello.seed)
        for reset in (asked, Reset()):
            try:
                await self._scene("start", await self._in_world(self._walk.reset, reset))
                return
            except WorldlineError as error:
                await self._fail(None, "request", str(error), "fix")
            except (RuntimeError, MemoryError) as error:
                await self._halt(error)
                return

    async def _until_due(self) -> None:
        """Wait until there is something to do: a command, or time for the next chunk."""
        while not self._commands:
            self._changed.clear()
            wait: float | None = None
            now = time.perf_counter()
            if not (self._standing or self._halted or self._walk.now is None or self._window.stalled(now)):
                wait = self._pacer.start_at() - now
                if wait <= 0:
                    return
            await _wait(self._changed, wait)

    async def _chunk(self) -> bool:
        """Make, queue and commit a chunk. False where the world failed."""
        script, prompt = self._script, None
        if script is None:
            controls = self._inputs.latch(self._frames)
        else:
            controls, prompt = script.chunks.popleft()
        act, begin = applied(controls, self._inputs.seq), time.perf_counter()
        try:
            pixels = await self._in_world(self._walk.step, controls, prompt)
        except (WorldlineError, RuntimeError, MemoryError) as error:
            await self._halt(error)
            return False
        ready = time.perf_counter()
        ms, chunk, flags = 1e3 * (ready - begin), self._walk.chunk, protocol.PLAYING if script else 0
        for i, due in enumerate(self._pacer.show(ready, ready - begin)):
            frame = 1 + (chunk - 1) * self._frames + i
            first = protocol.FIRST_OF_CHUNK if i == 0 else 0
            self._put(_Waiting(due, ready, frame, chunk, flags | first, pixels[i], act, ms))
        if script is None and not self._stepping:
            pixels = await self._revise(frame - self._frames + 1, controls, pixels)
        if self._recorder is not None and (why := self._recorder.put(pixels)):
            await self._stop_recording(why)
        if script is not None and script is self._script and not script.chunks:
            await self._end_script(completed=True)
        begin = time.perf_counter()
        await self._in_world(self._walk.commit)
        self._pacer.committed(time.perf_counter() - begin)
        return True

    async def _revise(self, first: int, controls: Controls, pixels: np.ndarray) -> np.ndarray:
        """While frames of the chunk are not yet due, newer input still reaches them. first: the number of its first frame.
        Returns the frames as they are shown in the end."""
        while not (self._commands or self._script or self._standing):
            now = time.perf_counter()
            chance = self._pacer.revise_at(now)
            if chance is None:
                break
            k, when = chance
            self._changed.clear()
            await _wait(self._changed, when - now)
            if time.perf_counter() < when or not self._inputs.fresh:
                continue
            begin = time.perf_counter()
            controls = Controls.concat([controls[:k], self._inputs.latch_again(self._frames - k)])
            act = applied(controls[k:], self._inputs.seq)
            try:
                made = await self._in_world(self._walk.revise, controls)
            except (WorldlineError, RuntimeError, MemoryError) as error:
                logger.warning("a chunk could not be made again: %s", error)
                break
            ready = time.perf_counter()
            self._pacer.revised(ready - begin)
            pixels = np.concatenate([pixels[:k], made[k:]])
            again = {"ready": ready, "applied": act, "compute_ms": 1e3 * (ready - begin)}
            self._queue = deque(
                _Waiting(**(vars(w) | again | {"pixels": made[w.frame - first]}))
                if w.frame >= first + k and not w.flags & protocol.STILL
                else w
                for w in self._queue
            )
        return pixels

    async def _halt(self, error: Exception) -> None:
        """The same chunk would fail again: stand until the walk is moved elsewhere."""
        self._halted = True
        if not isinstance(error, WorldlineError):
            logger.error("the world failed", exc_info=error)
        said = f"the world failed ({type(error).__name__})"
        if isinstance(error, WorldlineError):
            said = str(error).partition(";")[0]  # what follows is for programs: the page has buttons
        await self._fail(None, "world", f"{said}; start over, or go back", "reset")

    # -- commands ------------------------------------------------------------------------------------------------------

    async def _obey(self, command: Command | Attach) -> None:
        if isinstance(command, Attach):
            await self._attach(command.codec)
            return
        try:
            await self._do(command)
        except WorldlineError as error:
            await self._fail(command, "request", str(error), "fix")
        except (RuntimeError, MemoryError, OSError) as error:
            logger.error("a command failed: %s", protocol.NAMES_OF[type(command)], exc_info=error)
            await self._fail(command, "request", f"it failed on the server ({type(error).__name__})", "fix")

    async def _do(self, command: Command) -> None:
        """Obey and answer. Raises WorldlineError where it cannot be done; then nothing has changed."""
        walk = self._walk
        match command:
            case Reset():
                await self._scene("reset", await self._in_world(walk.reset, command))
            case Rewind(chunk=chunk, frame=frame):
                if chunk is None:
                    if frame is None:
                        raise WorldlineError("rewind to where? expected chunk or frame")
                    chunk = -(-frame // self._frames)
                await self._scene("rewind", await self._in_world(walk.rewind, chunk))
            case SlotGo(slot=slot):
                await self._scene("slot", await self._in_world(walk.slot_go, slot))
            case Load(file=file, watch=watch):
                place, script = await self._in_world(walk.load, file, watch, command.id)
                await self._end_script(completed=False)
                self._script = script
                await self._scene("load", place)
            case SlotSave(slot=slot):
                await self._done(command, slots=await self._in_world(walk.slot_save, slot))
                return
            case Prompt(text=text, mode=mode):
                await self._done(command, text=await self._in_world(walk.set_prompt, text, mode))
                return
            case Save():
                await self._done(command, file=describe(await self._in_world(walk.save)))
                return
            case Play(actions=actions):
                script = await self._in_world(walk.trajectory, actions, command.id) if actions else None
                await self._end_script(completed=False)
                self._script = script
            case Pause(on=on):
                self._paused = on
                self._stand()
            case Step(chunks=chunks):
                await self._step(chunks)
            case Record(on=on):
                await self._record(command, on)
                return
            case Codec(codec=codec):
                if codec != "track" and codec not in codecs_for(self._spec.height, self._spec.width):
                    raise WorldlineError(f"this world's pictures cannot be sent as {codec}; see codecs in hello")
                await self._use_codec(codec)
                self._window.drop()  # what went out the old way may never arrive
            case Keyframe():
                self._key = True
        await self._done(command)

    async def _step(self, chunks: int) -> None:
        """Walk so many chunks while paused; a waiting command or a lost client ends it early."""
        if not self._paused:
            raise WorldlineError("step while the world runs; pause first")
        chunks -= any(not w.flags & protocol.STILL for w in self._queue)  # what the pause held back is a step
        self._stepping = True
        self._stand()
        try:
            while chunks and not self._commands and not self._away and not self._halted and self._walk.now is not None:
                wait = self._pacer.start_at() - time.perf_counter()
                if wait > 0:
                    self._changed.clear()
                    await _wait(self._changed, wait)
                    continue
                chunks -= 1
                if not await self._chunk():
                    break
            while self._queue and not self._commands and not self._away:
                self._changed.clear()
                await _wait(self._changed, None)
        finally:
            self._stepping = False
            self._stand()

    async def _record(self, command: Command, on: bool) -> None:
        if on == (self._recorder is not None):
            raise WorldlineError("a recording runs already" if on else "no recording runs")
        spec = self._spec
        if on:
            self._recorder = Recorder(self._folder.new("mp4"), spec.fps, spec.height, spec.width, RECORD_S)
            await self._done(command)
            return
        recorder, self._recorder = self._recorder, None
        assert recorder is not None
        await self._done(command, file=describe(await self._in_codec(recorder.finish)))

    async def _stop_recording(self, why: str) -> None:
        recorder, self._recorder = self._recorder, None
        assert recorder is not None
        try:
            file = describe(await self._in_codec(recorder.finish))
        except WorldlineError as error:
            file, why = None, str(error)
        await self._say({"type": "recording", "on": False, "reason": why, "file": file})

    async def _end_script(self, completed: bool) -> None:
        if self._script is not None:
            script, self._script = self._script, None
            await self._say({"type": "played", "id": script.id, "completed": completed})

    async def _use_codec(self, codec: str) -> None:
        old = self._encoder
        self._encoder = await self._in_codec(encoder_of, codec, self._spec.height, self._spec.width, self._spec.fps)
        self._key = True
        if old is not None:
            await self._in_codec(old.close)

    async def _attach(self, codec: str) -> None:
        """Another connection takes the walk over: what it sees begins with where the walk stands."""
        await self._use_codec(codec)
        place = await self._in_world(self._walk.place) if self._walk.now is not None else None
        self._window.restart()
        self._inputs.release()
        self._away = False
        self._stand()
        if place is None:
            await self._fail(None, "world", "this walk has not begun; start over", "reset")
            return
        async with self._order:
            last = self._last
            if last is not None:
                place = Place(**(vars(place) | {"chunk": last.chunk, "frame": last.frame, "picture": last.pixels}))
            await self._tell("resume", place, keep=True)

    async def _scene(self, cause: str, place: Place) -> None:
        """A new generation: nothing of the old one is sent from here on."""
        async with self._order:
            self._halted = False
            if cause in ("reset", "rewind", "slot"):
                await self._end_script(completed=False)
            self._inputs.clear()
            self._pacer.restart()
            await self._tell(cause, place, keep=False)

    async def _tell(self, cause: str, place: Place, keep: bool) -> None:
        """Say the scene and queue its picture, before what waits (keep) or instead of it."""
        self.generation += 1
        self._window.drop()
        self._key, self._skipped = True, 0
        if not keep:
            self._queue.clear()
        await self._say(
            {"type": "scene", "generation": self.generation, "cause": cause, "chunk": place.chunk, "frame": place.frame,
             "prompt": place.prompt, "seed": place.seed, "start": place.start, "slots": place.slots,
             "paused": self._paused, "recording": self._recorder is not None, "playing": self._script is not None}
        )  # fmt: skip
        now = time.perf_counter()
        still = _Waiting(now, now, place.frame, place.chunk, protocol.STILL, place.picture, Applied(), 0.0)
        self._queue.appendleft(still)
        self._queued.set()

    # -- frames out ----------------------------------------------------------------------------------------------------

    @property
    def _standing(self) -> bool:
        return self._away or (self._paused and not self._stepping)

    def _stand(self) -> None:
        """The clock of what waits stops while the world stands."""
        now = time.perf_counter()
        if self._standing and self._stood_at is None:
            self._stood_at = now
        elif not self._standing and self._stood_at is not None:
            stood, self._stood_at = now - self._stood_at, None
            self._pacer.postpone(stood)
            self._queue = deque(
                _Waiting(**(vars(w) | {"due": w.due + stood, "ready": w.ready + stood})) for w in self._queue
            )
        self._changed.set()
        self._queued.set()

    def _put(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        self._queued.set()

    async def _send(self) -> None:
        """Frames at their due times, the newest where the client has no room for all."""
        while True:
            self._queued.clear()
            now = time.perf_counter()
            # A still is shown to a player who stands, too: it is where they stand.
            if not self._queue or self._away or (self._standing and not self._queue[0].flags & protocol.STILL):
                await _wait(self._queued, None)
            elif self._queue[0].due > now:
                await _wait(self._queued, self._queue[0].due - now)
            elif self._window.room(now):
                await self._emit(self._queue.popleft())
                self._changed.set()  # a step may be waiting for the last frame
            elif len(self._queue) > 1 and self._queue[1].due <= now:
                self._queue.popleft()
                self._skipped += 1
            else:
                await _wait(self._queued, self._queue[1].due - now if len(self._queue) > 1 else None)

    async def _emit(self, w: _Waiting) -> None:
        """Encode and send, unless the walk was moved elsewhere meanwhile."""
        generation, encoder = self.generation, self._encoder
        assert encoder is not None
        want, self._key = self._key, False
        picture, alone = await self._in_codec(encoder.encode, w.pixels, want)
        async with self._order:
            if generation != self.generation or encoder is not self._encoder:
                self._key = True
                return
            now = time.perf_counter()
            flags = w.flags | (protocol.KEY if alone else 0) | (protocol.RECORDING if self._recorder else 0)
            a, skipped, self._skipped = w.applied, self._skipped, 0
            frame = Frame(
                generation, w.frame, w.chunk, a.seq, picture, encoder.name, flags, a.keys, *a.move, a.yaw, a.pitch,
                skipped, w.compute_ms, 1e3 * (now - w.ready),
            )  # fmt: skip
            self._last = w
            self._window.sent(w.frame, now)
            await self._outlet.send(frame.pack(1e3 * time.time()))

    async def _in_world(self, fn: Callable[..., T], *args: Any) -> T:
        return await _finish(self._threads.world, fn, *args)

    async def _in_codec(self, fn: Callable[..., T], *args: Any) -> T:
        return await _finish(self._threads.codec, fn, *args)


async def _finish(executor: Executor, fn: Callable[..., T], *args: Any) -> T:
    """Run in a thread. When cancelled, waits for the thread first: nobody else may enter a half-made step."""
    running = asyncio.get_running_loop().run_in_executor(executor, fn, *args)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # taken note of
        raise


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    """Until the event or the time, whichever is first."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
