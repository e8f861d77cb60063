"""One player's connection: input in, frames out, on time.

The model runs in one worker thread. A chunk is started as late as it may be, answers the newest input, is queued for
sending frame by frame at the world's rate, and only then committed. What the client has not shown yet is bounded: a
slow client slows the world, it never fills a queue.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import numpy as np

from worldline.schema import Controls, WorldlineError
from worldline.serve.inputs import NAMES, InputState
from worldline.serve.protocol import Ack, Frame, Input, Message, Pause, Prompt, Reset
from worldline.stream.engine import Engine
from worldline.stream.pacing import Pacer
from worldline.stream.session import Session

T = TypeVar("T")
CHUNKS_AHEAD = 2  # a chunk is started while at most so many chunks of frames are not yet shown
JPEG_QUALITY = 92


def jpeg(frame: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> JPEG without chroma subsampling: small pictures are enlarged by the client."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=JPEG_QUALITY, colorsubsampling="444")


def picture_of(encoded: bytes, height: int, width: int) -> np.ndarray:
    """A JPEG or PNG of exactly the world's size -> uint8 [height, width, 3]. The size is read before anything is decoded,
    so that a small file cannot unfold into a huge picture. Raises WorldlineError on anything else."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
        if image.size == (width, height):
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise WorldlineError("the start picture is not readable; expected a JPEG or a PNG") from error
    raise WorldlineError(f"the start picture is {image.size[0]}x{image.size[1]}; this world takes {width}x{height}")


class Player:
    """`receive` takes messages at any time; `run` plays until cancelled."""

    def __init__(
        self,
        engine: Engine,
        worker: Executor,
        send_bytes: Callable[[bytes], Awaitable[None]],
        send_json: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self.engine, self.generation = engine, 0
        self._worker, self._send_bytes, self._send_json = worker, send_bytes, send_json
        spec = engine.spec
        self._frames = spec.frames_per_chunk
        self._inputs = InputState(spec.turn_deg_per_frame, spec.max_turn_deg_per_frame)
        self._pacer = Pacer(spec.fps, self._frames)
        self._session: Session | None = None
        self._reset: Reset | None = Reset()
        self._prompt: Prompt | None = None
        self._paused = self._halted = False  # by the client; by an error, until a reset
        self._queue: deque[tuple[float, Frame]] = deque()
        self._next_frame, self._acked, self._chunk = 0, -1, 0
        self._changed, self._queued = asyncio.Event(), asyncio.Event()

    @property
    def outstanding(self) -> int:
        """Frames made and not yet shown by the client."""
        return self._next_frame - 1 - self._acked

    def receive(self, message: Message) -> None:
        """Take a client's message; the latest of its kind wins."""
        match message:
            case Input():
                self._inputs.update(message)
                return  # read when a chunk starts; wakes nobody
            case Ack(generation, frame):
                if generation == self.generation:
                    self._acked = max(self._acked, min(frame, self._next_frame - 1))
            case Pause(on):
                self._paused = on
            case Reset():
                self._reset = message
            case Prompt():
                self._prompt = message
        self._changed.set()

    async def run(self) -> None:
        """Play until cancelled. Errors of the world are told to the client, who may reset."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send())
            while True:
                await self._until_start()
                try:
                    await self._turn()
                except WorldlineError as error:
                    code = "world" if self._halted or self._session is None else "request"
                    await self._send_json({"type": "error", "code": code, "message": str(error)})

    async def _turn(self) -> None:
        """A reset, a prompt and a chunk, whichever are due."""
        if self._reset is not None:
            await self._begin()
            return
        session = self._session
        if session is None:
            return
        if self._prompt is not None:
            prompt, self._prompt = self._prompt, None
            await self._in_worker(session.set_prompt, prompt.text)
            await self._send_json({"type": "prompt", "text": session.prompt})
            return
        controls, keys, seq = self._inputs.latch(self._frames)
        begin = time.perf_counter()
        try:
            pictures = await self._in_worker(self._make, session, controls)
        except WorldlineError:
            self._halted = True  # the same chunk would fail again; a reset goes on
            raise
        ready = time.perf_counter()
        if self._reset is not None:
            return  # these frames belong to a world that is left
        self._chunk += 1
        due = self._pacer.show(ready, ready - begin)
        ms = 1e3 * (ready - begin)
        for i, (when, picture) in enumerate(zip(due, pictures, strict=True)):
            self._put(when, Frame(self.generation, self._next_frame, self._chunk, seq, keys, i == 0, ms, picture))
        await self._in_worker(session.commit)

    async def _begin(self) -> None:
        """A new generation: a session from the start the client chose, and its first frame."""
        reset, self._reset, self._prompt = self._reset or Reset(), None, None
        begin = time.perf_counter()
        old = self._session
        if reset.image is not None:
            image = await self._in_worker(picture_of, reset.image, self.engine.config.height, self.engine.config.width)
            session = await self._in_worker(self.engine.session, image, reset.prompt, reset.seed or 0)
        elif old is None or reset.start is not None:
            session = await self._in_worker(self.engine.session, reset.start, reset.prompt, reset.seed or 0)
        else:
            session = old
            await self._in_worker(session.reset, None, reset.prompt, reset.seed)
        picture = await self._in_worker(jpeg, session.first_frame)
        self._session, self._halted = session, False
        self.generation += 1
        self._queue.clear()
        self._inputs.clear()
        self._pacer.restart()
        self._next_frame, self._acked, self._chunk = 0, -1, 0
        await self._send_json({"type": "reset", "generation": self.generation, "prompt": session.prompt})
        now = time.perf_counter()
        self._put(now, Frame(self.generation, 0, 0, self._inputs.seq, 0, True, 1e3 * (now - begin), picture))

    async def _until_start(self) -> None:
        """Wait until there is something to do: a reset or prompt, or room and time for the next chunk."""
        while self._reset is None and not (self._prompt is not None and not self._halted):
            self._changed.clear()
            wait: float | None = None
            if not (self._paused or self._halted) and self.outstanding <= CHUNKS_AHEAD * self._frames:
                wait = self._pacer.start_at() - time.perf_counter()
                if wait <= 0:
                    return
            await _wait(self._changed, wait)

    async def _send(self) -> None:
        """Frames at their due times."""
        while True:
            self._queued.clear()
            wait = self._queue[0][0] - time.perf_counter() if self._queue else None
            if wait is None or wait > 0:
                await _wait(self._queued, wait)
                continue
            _, frame = self._queue.popleft()
            await self._send_bytes(frame.pack(1e3 * time.time()))

    def _put(self, due: float, frame: Frame) -> None:
        self._queue.append((due, frame))
        self._next_frame = frame.frame + 1
        self._queued.set()

    @staticmethod
    def _make(session: Session, controls: Controls) -> list[bytes]:
        return [jpeg(frame) for frame in session.step(controls)]

    async def _in_worker(self, fn: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, fn, *args)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    """Until the event or the time, whichever is first."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def hello(engine: Engine) -> dict[str, Any]:
    """The first message of a connection."""
    spec = engine.spec
    return {
        "type": "hello", "world": spec.name, "fps": spec.fps, "height": spec.height, "width": spec.width,
        "frames_per_chunk": spec.frames_per_chunk, "keys": list(NAMES), "starts": list(engine.starts),
    }  # fmt: skip
