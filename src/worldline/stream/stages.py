"""How far the loading of a world is, for whoever waits for it: `Engine.load` says what it begins, a listener hears it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Stage = Literal["weights", "codec", "quantise", "warm-up", "compile"]
WORDS: dict[Stage, str] = {
    "weights": "reading the weights",
    "codec": "reading the codec",
    "quantise": "rounding the weights to 8 bits",
    "warm-up": "walking the first chunks",
    "compile": "compiling for this machine",
}
_listener: ContextVar[Callable[[Stage], object] | None] = ContextVar("listener", default=None)


def begins(stage: Stage) -> None:
    """A stage of loading begins in this thread."""
    listener = _listener.get()
    if listener is not None:
        listener(stage)


@contextmanager
def heard(listener: Callable[[Stage], object]) -> Iterator[None]:
    """Within, `listener` is told of every stage of what is loaded in this thread, in this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
