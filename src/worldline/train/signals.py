"""Ctrl-C and SIGTERM ask a run to save and stop; a second Ctrl-C stops it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Context manager: `requested` turns true on the first SIGINT or SIGTERM. Inert outside the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, signal._HANDLER] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._old[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
