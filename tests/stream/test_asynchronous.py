"""Awaited verbs give what plain ones give, and tasks take turns."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.stream.test_session import controls, walk

from worldline.schema import ShapeError
from worldline.stream.asynchronous import AsyncSession


async def track(n: int):
    for i in range(n):
        await asyncio.sleep(0)
        yield controls(i)


def test_awaited_calls_are_the_plain_ones(engine, tmp_path):
    control = engine.session("hall", seed=3)
    wanted = walk(control, range(4))

    async def play() -> None:
        async with await AsyncSession.start(engine, "hall", seed=3) as session:
            got = [frames async for frames in session.stream(track(4))]
            np.testing.assert_array_equal(np.concatenate(got), wanted)
            assert session.session._pending is None
            other = await session.fork()
            await session.set_prompt("a cave", "blend", 2)
            await session.rewind(1)
            await session.set_prompt("a hall", "cut")
            await session.step(controls(9))
            await session.revise(controls(8))
            await session.save(tmp_path / "walk")
            assert (await session.record(tmp_path / "walk.mp4")).stat().st_size > 0
            np.testing.assert_array_equal(await other.step(controls(4)), control.step(controls(4)))
            np.testing.assert_array_equal(await session.reset(), control.first_frame)
            assert (await session.append(np.stack([control.first_frame] * 4), controls(0))).shape[0] == 4
            with pytest.raises(ShapeError):
                await session.step(controls(0, rows=3))

    asyncio.run(play())


def test_tasks_take_turns(engine):
    async def play() -> None:
        async with await AsyncSession.start(engine, "hall") as session:
            await asyncio.gather(*(session.step(controls(i)) for i in range(5)))
            assert session.session.frame_index == 21

    asyncio.run(play())


def test_a_stream_left_early_has_committed_what_it_showed(engine):
    async def play() -> None:
        async with await AsyncSession.start(engine, "hall") as session:
            frames = session.stream(track(5))
            await anext(frames)
            await frames.aclose()
            assert session.session._pending is None
            assert session.session.frame_index == 5

    asyncio.run(play())
