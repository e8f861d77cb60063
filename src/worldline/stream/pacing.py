"""When to show frames and when to start on the next chunk: one rule for the server and for the benchmark.

A chunk should be ready just as the last frame of the chunk before has had its time on screen. Started earlier, it would
answer older input; started later, the picture would stand still.

An event just after a chunk's start would still wait for the next one, a whole chunk's playout. Where a machine makes a
chunk in less than a frame's time, it can do better: make the chunk again under the newer input (`Session.revise`) and
replace those of its frames that are not yet shown. An event then waits for the next frame, not for the next chunk.

All times are seconds on one clock that the caller reads, so the rule is tested in virtual time.
"""

from __future__ import annotations

from collections import deque


class Pacer:
    """fps: native frames a second; frames: pixel frames a chunk; margin: seconds kept in hand against jitter."""

    def __init__(self, fps: float, frames: int, margin: float = 0.015) -> None:
        self.fps, self.frames, self.margin = fps, frames, margin
        self._compute: deque[float] = deque(maxlen=16)
        self._commit: deque[float] = deque(maxlen=16)
        self._interval = 1 / fps
        self._end = float("-inf")  # when the last frame shown so far has had its time

    @property
    def estimate(self) -> float:
        """Seconds the next chunk will take from input to pixels: the slowest but one of the last sixteen, as a late
        chunk is seen and an early one is not."""
        return _nearly_slowest(self._compute)

    def start_at(self) -> float:
        """When to take the input and start the next chunk; a time in the past means now."""
        return self._end - self.estimate - self.margin

    def show(self, ready: float, compute: float) -> list[float]:
        """Due times of the frames of a chunk that became ready at `ready` after `compute` seconds.

        A machine slower than the world's clock stretches the frames over the time the next chunk will take, so that the
        picture moves slowly rather than in jerks.
        """
        self._compute.append(compute)
        self._interval = max(1 / self.fps, self.estimate / self.frames)
        first = max(ready, self._end)
        self._end = first + self.frames * self._interval
        return [first + i * self._interval for i in range(self.frames)]

    def revise_at(self, now: float) -> tuple[int, float] | None:
        """(k, when): the first frame of the chunk shown last that newer input can still reach, and when to take that
        input. None where there is no such frame: the chunk is final, to be committed.

        Frame k is reached where the chunk made again is ready before k is due, and its commit done before the next chunk
        must start.
        """
        start, commit = self.start_at(), _nearly_slowest(self._commit)
        for k in range(1, self.frames):
            due = self._end - (self.frames - k) * self._interval
            when = due - self.estimate - self.margin
            if when >= now and due - self.margin + commit <= start:
                return k, when
        return None

    def revised(self, compute: float) -> None:
        """A revision took so long, from input to pixels."""
        self._compute.append(compute)

    def committed(self, seconds: float) -> None:
        """A commit took so long."""
        self._commit.append(seconds)

    def postpone(self, seconds: float) -> None:
        """The picture stood still for so long: what is on screen has its time later."""
        self._end += seconds

    def restart(self) -> None:
        """Forget what is on screen (a reset), keep what was learnt of the machine."""
        self._end = float("-inf")


def _nearly_slowest(seconds: deque[float]) -> float:
    ordered = sorted(seconds)
    return 0.0 if not ordered else ordered[-2] if len(ordered) > 4 else ordered[-1]
