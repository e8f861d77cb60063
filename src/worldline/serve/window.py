"""How much may be on its way to a client, and how often a client may speak. All times are seconds the caller reads, so
the rules are tested in virtual time."""

from __future__ import annotations

from collections import deque

STALL_S = 5.0  # nothing acknowledged for so long: nobody is watching
PROOF = 3  # acknowledgements before more than one frame may be on its way
SMOOTHING = 0.3  # weight of the newest service time


class SendWindow:
    """Unacknowledged frames allowed: rate x (chunk + round trip), at least one.

    By Little's law a frame then waits at most a chunk and a round trip between being sent and being shown, however slow
    the client. The rate is what the client was seen to take, the round trip the shortest from sending to
    acknowledgement. Both are measured with few frames on their way first: a full window would measure itself. What the
    client says of its network (`network`, seconds there and back) is no time it took for a frame: without it, a far
    client looks like a slow one.
    """

    def __init__(self, fps: float, chunk_s: float) -> None:
        self.fps, self.chunk_s = fps, chunk_s
        self.restart()

    def restart(self) -> None:
        """Another client: nothing is known."""
        self.round_trip, self.network = float("inf"), 0.0
        self._acks, self._service = 0, 0.0  # seconds the client took for a frame, smoothed
        self.drop()

    def drop(self) -> None:
        """Another generation: what was on its way will not be acknowledged; what was learnt stays."""
        self._sent: deque[tuple[int, float]] = deque()
        self._progress = float("-inf")

    @property
    def in_flight(self) -> int:
        """Frames sent and not acknowledged."""
        return len(self._sent)

    def size(self, now: float) -> int:
        """Frames that may be on their way."""
        if self._acks < PROOF:
            return 1
        waiting = now - max(self._progress, self._sent[0][1] + self.network) if self._sent else 0.0
        rate = min(self.fps, 1 / max(self._service, waiting, 1e-6))
        return max(1, int(rate * (self.chunk_s + self.round_trip)))

    def room(self, now: float) -> bool:
        """Whether another frame may be sent."""
        return self.in_flight < self.size(now)

    def stalled(self, now: float) -> bool:
        """Whether the client has taken nothing for so long that the world should wait for it."""
        return bool(self._sent) and now - max(self._sent[0][1], self._progress) > STALL_S

    def sent(self, frame: int, now: float) -> None:
        """A frame goes out."""
        self._sent.append((frame, now))

    def acked(self, frame: int, now: float) -> None:
        """The client has shown every frame up to this one."""
        taken = 0
        last = 0.0
        while self._sent and self._sent[0][0] <= frame:
            last = self._sent.popleft()[1]
            taken += 1
        if not taken:
            return
        self.round_trip = min(self.round_trip, now - last)
        service = max(0.0, now - max(self._progress, last + self.network)) / taken
        self._service = service if self._acks == 0 else self._service + SMOOTHING * (service - self._service)
        self._acks, self._progress = self._acks + taken, now


class TokenBucket:
    """`rate` a second, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._tokens, self._at = burst, float("-inf")

    def take(self, now: float) -> bool:
        """Whether one more is within the rate."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True

    def wait(self) -> float:
        """Seconds until the next one is."""
        return max(0.0, (1 - self._tokens) / self.rate)
