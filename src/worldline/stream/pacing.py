"""When to show frames and when to start on the next chunk: one rule for the server and for the benchmark.

A chunk should be ready just as the last frame of the chunk before has had its time on screen. Started earlier, it would
answer older input; started later, the picture would stand still. All times are seconds on one clock that the caller
reads, so the rule is tested in virtual time.
"""

from __future__ import annotations

from collections import deque


class Pacer:
    """fps: native frames a second; frames: pixel frames a chunk; margin: seconds kept in hand against jitter."""

    def __init__(self, fps: float, frames: int, margin: float = 0.015) -> None:
        self.fps, self.frames, self.margin = fps, frames, margin
        self._compute: deque[float] = deque(maxlen=16)
        self._end = float("-inf")  # when the last frame shown so far has had its time

    @property
    def estimate(self) -> float:
        """Seconds the next chunk will take from input to pixels: the slowest but one of the last sixteen, as a late
        chunk is seen and an early one is not."""
        if not self._compute:
            return 0.0
        ordered = sorted(self._compute)
        return ordered[-2] if len(ordered) > 4 else ordered[-1]

    def start_at(self) -> float:
        """When to take the input and start the next chunk; a time in the past means now."""
        return self._end - self.estimate - self.margin

    def show(self, ready: float, compute: float) -> list[float]:
        """Due times of the frames of a chunk that became ready at `ready` after `compute` seconds.

        A machine slower than the world's clock stretches the frames over the time the next chunk will take, so that the
        picture moves slowly rather than in jerks.
        """
        self._compute.append(compute)
        interval = max(1 / self.fps, self.estimate / self.frames)
        first = max(ready, self._end)
        self._end = first + self.frames * interval
        return [first + i * interval for i in range(self.frames)]

    def restart(self) -> None:
        """Forget what is on screen (a reset, a pause), keep what was learnt of the machine."""
        self._end = float("-inf")
