"""What goes over the wire, version 1. Knows nothing of models or sockets.

Server to client, binary: one frame, HEADER then a JPEG. Server to client, text: JSON objects with a `type` (hello,
reset, prompt, busy, error). Client to server, text: JSON objects parsed here.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from worldline.schema import WorldlineError

VERSION = 1
MAX_MESSAGE = 262_144  # bytes of a client's message: room for a start picture at 480p
MAX_KEYS = 16
MAX_PROMPT = 500
# version u8, flags u8 (bit 0: first frame of a chunk), applied keys u16, generation u32, frame u32, chunk u32,
# applied input sequence u32, server clock ms f64, compute ms of the chunk f32; little-endian, 32 bytes.
HEADER = struct.Struct("<BBHIIIIdf")
FIRST_OF_CHUNK = 1


class ProtocolError(WorldlineError):
    """A message that is not of this protocol; the connection goes on."""


@dataclass(frozen=True)
class Frame:
    """A frame on its way. `generation` counts resets, `frame` pixel frames since, `seq` the input it answers."""

    generation: int
    frame: int
    chunk: int
    seq: int
    keys: int
    first: bool
    compute_ms: float
    jpeg: bytes

    def pack(self, server_ms: float) -> bytes:
        """Header and picture."""
        flags = FIRST_OF_CHUNK if self.first else 0
        return (
            HEADER.pack(
                VERSION, flags, self.keys, self.generation, self.frame, self.chunk, self.seq, server_ms, self.compute_ms
            )
            + self.jpeg
        )

    @staticmethod
    def unpack(payload: bytes) -> tuple[Frame, float]:
        """A packed frame and the server's clock. Raises ProtocolError on another version or a short message."""
        if len(payload) < HEADER.size or payload[0] != VERSION:
            raise ProtocolError(
                f"{len(payload)} bytes beginning {payload[:4].hex()}: expected a version {VERSION} frame"
            )
        _, flags, keys, generation, frame, chunk, seq, server_ms, compute_ms = HEADER.unpack_from(payload)
        first = bool(flags & FIRST_OF_CHUNK)
        return Frame(generation, frame, chunk, seq, keys, first, compute_ms, payload[HEADER.size :]), server_ms


@dataclass(frozen=True)
class Input:
    """The keys held now (W3C `KeyboardEvent.code`) and the mouse's travel in pixels since the message before."""

    seq: int
    keys: tuple[str, ...]
    mouse_dx: float


@dataclass(frozen=True)
class Reset:
    """Start over; what is None stays. start: a named place; image: an encoded picture of the world's size instead."""

    start: str | None = None
    prompt: str | None = None
    seed: int | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Prompt:
    """Go on under another prompt."""

    text: str


@dataclass(frozen=True)
class Ack:
    """Frames of `generation` up to `frame` have been shown."""

    generation: int
    frame: int


@dataclass(frozen=True)
class Pause:
    """Stand still while nobody looks."""

    on: bool


Message = Input | Reset | Prompt | Ack | Pause


def parse(text: str) -> Message:
    """A client's message. Raises ProtocolError, naming the field, on anything else."""
    if len(text.encode("utf-8", "replace")) > MAX_MESSAGE:
        raise ProtocolError(f"message of more than {MAX_MESSAGE} bytes")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ProtocolError(f"a JSON {type(raw).__name__}; expected an object with a type")
    match raw.get("type"):
        case "input":
            keys = raw.get("keys", [])
            if not isinstance(keys, list) or len(keys) > MAX_KEYS or not all(isinstance(k, str) for k in keys):
                raise ProtocolError(f"keys: expected a list of at most {MAX_KEYS} strings")
            return Input(_whole(raw, "seq"), tuple(k[:32] for k in keys), _number(raw, "mouse_dx"))
        case "reset":
            seed = None if raw.get("seed") is None else _whole(raw, "seed")
            return Reset(_text(raw, "start", 200), _text(raw, "prompt", MAX_PROMPT), seed, _bytes(raw, "image"))
        case "prompt":
            return Prompt(_text(raw, "text", MAX_PROMPT) or "")
        case "ack":
            return Ack(_whole(raw, "generation"), _whole(raw, "frame"))
        case "pause":
            return Pause(bool(raw.get("on", True)))
        case other:
            raise ProtocolError(f"type {str(other)[:40]!r}; expected input, reset, prompt, ack or pause")


def _whole(raw: dict[str, Any], key: str) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise ProtocolError(f"{key}: expected a whole number from 0 to 2^32 - 1")
    return value


def _number(raw: dict[str, Any], key: str) -> float:
    value = raw.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e4 or math.isnan(value):
        raise ProtocolError(f"{key}: expected a number of at most 10000")
    return float(value)


def _text(raw: dict[str, Any], key: str, limit: int) -> str | None:
    value = raw.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > limit):
        raise ProtocolError(f"{key}: expected a string of at most {limit} characters")
    return value


def _bytes(raw: dict[str, Any], key: str) -> bytes | None:
    value = raw.get(key)
    if value is None:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"{key}: expected base64 text ({error})") from error
