"""A session for programs that run on an event loop: the same verbs, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from worldline.schema import Controls
from worldline.stream.engine import Engine
from worldline.stream.log import PromptMode
from worldline.stream.session import Session

P = ParamSpec("P")
T = TypeVar("T")


class AsyncSession:
    """`Session` with coroutines; every call runs in one worker thread, so that calls of several tasks take turns and whatever
    the device ties to a thread stays on it.

    worker: the thread to share between sessions; None makes one of this session's own, which `close` (or `async with`) ends.
    """

    def __init__(self, session: Session, worker: Executor | None = None) -> None:
        self.session = session
        self._own = ThreadPoolExecutor(1, thread_name_prefix="session") if worker is None else None
        self._worker: Executor = worker or self._own or ThreadPoolExecutor(1)

    @staticmethod
    async def start(
        engine: Engine,
        image: np.ndarray | str | None = None,
        prompt: str | None = None,
        seed: int = 0,
        worker: Executor | None = None,
    ) -> AsyncSession:
        """As Engine.session."""
        session = await asyncio.get_running_loop().run_in_executor(worker, engine.session, image, prompt, seed)
        return AsyncSession(session, worker)

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, lambda: call(*args, **kwargs))

    async def step(self, controls: Controls) -> np.ndarray:
        """As Session.step."""
        return await self._do(self.session.step, controls)

    async def revise(self, controls: Controls) -> np.ndarray:
        """As Session.revise."""
        return await self._do(self.session.revise, controls)

    async def commit(self) -> None:
        """As Session.commit."""
        await self._do(self.session.commit)

    async def append(self, past: np.ndarray | Tensor, controls: Controls) -> np.ndarray:
        """As Session.append."""
        return await self._do(self.session.append, past, controls)

    async def set_prompt(self, prompt: str, mode: PromptMode = "keep", chunks: int | None = None) -> None:
        """As Session.set_prompt."""
        more = {} if chunks is None else {"chunks": chunks}
        await self._do(self.session.set_prompt, prompt, mode, **more)

    async def reset(
        self, image: np.ndarray | None = None, prompt: str | None = None, seed: int | None = None
    ) -> np.ndarray:
        """As Session.reset."""
        return await self._do(self.session.reset, image, prompt, seed)

    async def fork(self) -> AsyncSession:
        """As Session.fork; shares this one's worker."""
        return AsyncSession(await self._do(self.session.fork), self._worker)

    async def rewind(self, chunks: int = 1) -> None:
        """As Session.rewind."""
        await self._do(self.session.rewind, chunks)

    async def save(self, path: str | Path, *, latents: bool = False) -> None:
        """As Session.save."""
        await self._do(self.session.save, path, latents=latents)

    async def record(self, path: str | Path, start: int = 0, stop: int | None = None, scale: int = 1) -> Path:
        """As Session.record."""
        return await self._do(self.session.record, path, start, stop, scale)

    async def stream(self, controls: AsyncIterable[Controls]) -> AsyncIterator[np.ndarray]:
        """The frames of chunk after chunk. Controls are taken when a chunk starts, as late as they can be; a chunk is
        committed while its frames are with the caller."""
        pending: asyncio.Task[None] | None = None
        try:
            async for rows in controls:
                if pending is not None:
                    await pending
                frames = await self.step(rows)
                pending = asyncio.create_task(self.commit())
                yield frames
        finally:
            if pending is not None:
                await pending

    def close(self) -> None:
        """End the worker, where it is this session's own."""
        if self._own is not None:
            self._own.shutdown(wait=False)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
