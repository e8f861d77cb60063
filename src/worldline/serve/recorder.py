"""A recording of a walk: frames in, an MP4 out, encoded in a thread of its own while the walk goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worldline.schema import WorldlineError
from worldline.stream.record import write_mp4

RECORD_S = 600.0  # the longest recording
WAITING = 256  # frames that may wait for the encoder
MIN_SIDE = 384  # small pictures are enlarged, as players blur them


class Recorder:
    """Starts at once. `put` never waits; `finish` does. Not for two threads at once."""

    def __init__(self, path: Path, fps: float, height: int, width: int, limit_s: float) -> None:
        self.path, self.left = path, int(limit_s * fps)
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._frames = 0
        scale = max(1, round(MIN_SIDE / min(height, width)))
        scale += scale * height % 2 or scale * width % 2  # H.264 halves the colours both ways
        self._thread = threading.Thread(target=self._write, args=(fps, scale), name="recorder", daemon=True)
        self._thread.start()

    def put(self, frames: np.ndarray) -> str | None:
        """Add frames uint8 [n, H, W, 3]. Returns why the recording has to end now, or None."""
        for frame in frames:
            if self.left <= 0:
                return "the recording has its full length"
            if self._error is not None:
                return f"the recording failed: {self._error}"
            try:
                self._queue.put_nowait(frame)
            except queue.Full:
                return "the recording could not keep up with the walk"
            self.left, self._frames = self.left - 1, self._frames + 1
        return None

    def finish(self) -> Path:
        """Wait for the file. Raises WorldlineError where there is none."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            self.path.unlink(missing_ok=True)
            raise WorldlineError(f"the recording failed: {self._error}") from self._error
        if not self._frames:
            self.path.unlink(missing_ok=True)
            raise WorldlineError("the recording is empty; walk between starting and stopping it")
        return self.path

    def abandon(self) -> None:
        """End without a file."""
        self._queue.put(None)
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _write(self, fps: float, scale: int) -> None:
        try:
            write_mp4(self._taken(), self.path, fps, scale)
        except BaseException as error:
            self._error = error
            while self._queue.get() is not None:  # nobody may wait for a place in the queue
                continue

    def _taken(self) -> Iterator[np.ndarray]:
        while (frame := self._queue.get()) is not None:
            yield frame
