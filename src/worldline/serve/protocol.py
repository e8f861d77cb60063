"""What goes over the wire, version 2 (docs/protocol.md). Knows nothing of models or sockets.

Client to server: JSON text, read by `parse` into one of the messages below. Server to client: JSON objects with a `type`,
and frames, which are HEADER and an encoded picture.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from worldline.schema import WorldlineError

VERSION = 2
MAX_MESSAGE = 262_144  # bytes of a client's message
MESSAGES_PER_S = 300.0  # read from one connection; what is more waits in its socket
MAX_KEYS = 16
MAX_PROMPT = 500
MAX_ACTIONS = 4000  # characters of a trajectory
MAX_STEPS = 64
MAX_SDP = 20_000  # characters of an offer
MAX_MOUSE = 1e4  # pixels an input
FRAME = 1  # the one kind of binary message
FIRST_OF_CHUNK, KEY, STILL, RECORDING, PLAYING = 1, 2, 4, 8, 16  # flags of a frame
# version, kind, codec, flags u8; generation, frame, chunk, seq u32; keys u16; right, up, forward i8; 0; skipped u16;
# yaw f32; server clock ms f64; compute ms, queued ms, pitch f32; little-endian, 52 bytes.
HEADER = struct.Struct("<BBBBIIIIHbbbxHfdfff")
CODECS = ("jpeg", "h264", "track")  # by their number on the wire; track: the picture is on the WebRTC video track
PromptMode = Literal["keep", "recache", "cut", "blend"]
PROMPT_MODES: tuple[PromptMode, ...] = ("keep", "recache", "cut", "blend")  # the default first
Retry = Literal["fix", "reset", "reconnect", "later", "never"]
FILE_ID = re.compile(r"[0-9a-f]{32}")


_NEEDED = {"needed": True}  # a field without which the message means nothing, though its dataclass has a default


class ProtocolError(WorldlineError):
    """A message that is not of this protocol; the connection goes on."""


@dataclass(frozen=True)
class Frame:
    """A frame on its way. `frame` counts pixel frames from the walk's start, `seq` the input it answers, `skipped` those
    dropped just before it; right, up, forward in [-1, 1] and yaw, pitch (degrees a frame) are what was applied."""

    generation: int
    frame: int
    chunk: int
    seq: int
    picture: bytes
    codec: str = "jpeg"
    flags: int = 0
    keys: int = 0
    right: float = 0.0
    up: float = 0.0
    forward: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    skipped: int = 0
    compute_ms: float = 0.0
    queued_ms: float = 0.0

    @property
    def first(self) -> bool:
        """Whether a chunk begins here."""
        return bool(self.flags & FIRST_OF_CHUNK)

    def pack(self, server_ms: float) -> bytes:
        """Header and picture."""
        moves = (round(127 * max(-1.0, min(1.0, x))) for x in (self.right, self.up, self.forward))
        return (
            HEADER.pack(
                VERSION, FRAME, CODECS.index(self.codec), self.flags, self.generation, self.frame, self.chunk, self.seq,
                self.keys, *moves, min(self.skipped, 65535), self.yaw, server_ms, self.compute_ms, self.queued_ms,
                self.pitch,
            )
            + self.picture
        )  # fmt: skip

    @staticmethod
    def unpack(payload: bytes) -> tuple[Frame, float]:
        """A packed frame and the server's clock. Raises ProtocolError on another version or a short message."""
        if len(payload) < HEADER.size or payload[0] != VERSION or payload[1] != FRAME or payload[2] >= len(CODECS):
            raise ProtocolError(
                f"{len(payload)} bytes beginning {payload[:4].hex()}: expected a version {VERSION} frame"
            )
        (_, _, codec, flags, generation, frame, chunk, seq, keys, right, up, forward, skipped, yaw, server_ms, compute,
         queued, pitch) = HEADER.unpack_from(payload)  # fmt: skip
        return (
            Frame(
                generation, frame, chunk, seq, payload[HEADER.size :], CODECS[codec], flags, keys, right / 127,
                up / 127, forward / 127, yaw, pitch, skipped, compute, queued,
            ),
            server_ms,
        )  # fmt: skip


# -- what a client says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """The first message. resume: the secret of an earlier connection; start, prompt, seed: of a new walk."""

    version: int
    codecs: tuple[str, ...] = ("jpeg",)
    resume: str | None = None
    start: str | None = None
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Input:
    """What is held now: keys as W3C `KeyboardEvent.code`, mouse travel (dx, dy) in pixels since the input before, axes
    (left x, left y, right x, right y) in [-1, 1], y down."""

    seq: int
    keys: tuple[str, ...] = ()
    mouse: tuple[float, float] = (0.0, 0.0)
    axes: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Ack:
    """Frames of `generation` up to `frame` have been shown."""

    generation: int
    frame: int


@dataclass(frozen=True)
class Ping:
    """Asks for the server's clock, and says how long the answer to the one before took (ms)."""

    t: float
    rtt_ms: float = 0.0


@dataclass(frozen=True)
class Command:
    """Answered exactly once, by `done` or `error` with this id."""

    id: int | None = None


@dataclass(frozen=True)
class Prompt(Command):
    """Go on under another prompt."""

    text: str = field(default="", metadata=_NEEDED)
    mode: PromptMode | None = None  # None is the world's own default


@dataclass(frozen=True)
class Reset(Command):
    """Start over; what is None stays. start: a named place; image: id of an uploaded picture instead."""

    start: str | None = None
    image: str | None = None
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Pause(Command):
    """Stand still, or go on."""

    on: bool = True


@dataclass(frozen=True)
class Step(Command):
    """While paused: so many chunks, then stand again."""

    chunks: int = 1


@dataclass(frozen=True)
class Rewind(Command):
    """Keep the first `chunk` chunks, or those up to the one that holds `frame`."""

    chunk: int | None = None
    frame: int | None = None


@dataclass(frozen=True)
class SlotSave(Command):
    """Keep this moment."""

    slot: int = 1


@dataclass(frozen=True)
class SlotGo(Command):
    """Back to a kept moment."""

    slot: int = 1


@dataclass(frozen=True)
class Record(Command):
    """Start or stop a recording."""

    on: bool = True


@dataclass(frozen=True)
class Save(Command):
    """The walk as a file."""


@dataclass(frozen=True)
class Load(Command):
    """An uploaded walk: go on from its end, or watch it from its beginning."""

    file: str = field(default="", metadata=_NEEDED)
    watch: bool = False


@dataclass(frozen=True)
class Play(Command):
    """Hold the keys of a trajectory string; an empty one stops."""

    actions: str = ""


@dataclass(frozen=True)
class Codec(Command):
    """Send pictures otherwise."""

    codec: str = "jpeg"


@dataclass(frozen=True)
class Rtc(Command):
    """An offer of WebRTC; `done` carries the answer."""

    sdp: str = field(default="", metadata=_NEEDED)


@dataclass(frozen=True)
class Keyframe(Command):
    """The next frame shall be decodable alone."""


@dataclass(frozen=True)
class Leave(Command):
    """Give up the seat."""


@dataclass(frozen=True)
class Attach:
    """From the server to the process of a walk: another client is there, who takes this codec."""

    codec: str


@dataclass(frozen=True)
class Detach:
    """From the server to the process of a walk: nobody is there."""


Message = Hello | Input | Ack | Ping | Command | Attach | Detach


def parse(text: str) -> Message:
    """A client's message. Raises ProtocolError, naming the field, on anything else."""
    return _parse(text, _CLIENT)


def parse_inside(text: str) -> Message:
    """A message from the server to the process of a walk: a client's, `attach` or `detach`."""
    return _parse(text, _CLIENT | _INSIDE)


def dump(message: Message) -> str:
    """The text that `parse` (or `parse_inside`) reads as this message."""
    kind = next(name for name, (cls, _) in (_CLIENT | _INSIDE).items() if cls is type(message))
    return json.dumps({"type": kind} | dataclasses.asdict(message))


def error(
    code: str,
    message: str,
    retry: Retry = "fix",
    *,
    re: int | None = None,
    after: float | None = None,
) -> dict[str, Any]:
    """The `error` message; re: the command it answers, after: seconds until trying again makes sense."""
    return {"type": "error", "id": re, "code": code, "message": message, "retry": retry, "retry_after_s": after}


def _parse(text: str, known: dict[str, _Reader]) -> Message:
    if len(text) > MAX_MESSAGE:
        raise ProtocolError(f"message of {len(text)} characters; expected at most {MAX_MESSAGE}")
    try:
        raw = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {str(error)[:100]}") from error
    if not isinstance(raw, dict):
        raise ProtocolError(f"a JSON {type(raw).__name__}; expected an object with a type")
    kind = raw.get("type")
    if not isinstance(kind, str) or kind not in known:
        raise ProtocolError(f"type {str(kind)[:40]!r}; expected one of {', '.join(known)}")
    cls, fields = known[kind]
    if issubclass(cls, Command):
        fields = {"id": _maybe_whole, **fields}
    return cls(**{name: read(raw[name], name) for name, read in fields.items() if name in raw or _needed(cls, name)})


def _needed(cls: type, name: str) -> bool:
    """False; raises where the message cannot do without the field."""
    known = next(f for f in dataclasses.fields(cls) if f.name == name)
    if known.default is dataclasses.MISSING or known.metadata.get("needed"):
        raise ProtocolError(f"{cls.__name__.lower()} without {name}; docs/protocol.md has the fields")
    return False


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise ProtocolError(f"{key}: expected a whole number from 0 to 2^32 - 1")
    return value


def _maybe_whole(value: Any, key: str) -> int | None:
    return None if value is None else _whole(value, key)


def _steps(value: Any, key: str) -> int:
    if not 1 <= _whole(value, key) <= MAX_STEPS:
        raise ProtocolError(f"{key}: expected 1 to {MAX_STEPS}")
    return int(value)


def _number(value: Any, key: str, limit: float = 1e15) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) <= limit or math.isnan(value):
        raise ProtocolError(f"{key}: expected a number of at most {limit:g}")
    return float(value)


def _rtt(value: Any, key: str) -> float:
    return max(0.0, _number(value, key, 1e5))


def _pair(value: Any, key: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != 2:
        raise ProtocolError(f"{key}: expected [dx, dy]")
    return tuple(_number(x, key, MAX_MOUSE) for x in value)


def _axes(value: Any, key: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != 4:
        raise ProtocolError(f"{key}: expected [left x, left y, right x, right y]")
    return tuple(_number(x, key, 1.0) for x in value)


def _keys(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_KEYS or not all(isinstance(k, str) for k in value):
        raise ProtocolError(f"{key}: expected a list of at most {MAX_KEYS} strings")
    return tuple(k[:32] for k in value)


def _codecs(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > 8 or not all(isinstance(k, str) for k in value):
        raise ProtocolError(f"{key}: expected a list of codecs")
    return tuple(k for k in value if k in CODECS) or ("jpeg",)


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"{key}: expected true or false")
    return value


def _text(limit: int, empty: bool = True) -> Callable[[Any, str], str]:
    def read(value: Any, key: str) -> str:
        if not isinstance(value, str) or len(value) > limit or not (value or empty):
            raise ProtocolError(f"{key}: expected a string of at most {limit} characters")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ProtocolError(f"{key}: holds half a character (a lone surrogate)") from error
        return value

    return read


def _maybe(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, key: None if value is None else read(value, key)


def _one_of(names: tuple[str, ...]) -> Callable[[Any, str], str]:
    def read(value: Any, key: str) -> str:
        if value not in names:
            raise ProtocolError(f"{key}: expected one of {', '.join(names)}")
        return str(value)

    return read


def _file(value: Any, key: str) -> str:
    if not isinstance(value, str) or not FILE_ID.fullmatch(value):
        raise ProtocolError(f"{key}: expected the id of an uploaded file, 32 hexadecimal digits")
    return value


_Reader = tuple[type, dict[str, Callable[[Any, str], Any]]]
_prompt = _text(MAX_PROMPT)
_CLIENT: dict[str, _Reader] = {
    "hello": (
        Hello,
        {"version": _whole, "codecs": _codecs, "resume": _maybe(_text(64)), "start": _maybe(_text(200)),
         "prompt": _maybe(_prompt), "seed": _maybe_whole},
    ),
    "input": (Input, {"seq": _whole, "keys": _keys, "mouse": _pair, "axes": _axes}),
    "ack": (Ack, {"generation": _whole, "frame": _whole}),
    "ping": (Ping, {"t": _number, "rtt_ms": _rtt}),
    "prompt": (Prompt, {"text": _prompt, "mode": _maybe(_one_of(PROMPT_MODES))}),
    "reset": (
        Reset,
        {"start": _maybe(_text(200)), "image": _maybe(_file), "prompt": _maybe(_prompt), "seed": _maybe_whole},
    ),
    "pause": (Pause, {"on": _flag}),
    "step": (Step, {"chunks": _steps}),
    "rewind": (Rewind, {"chunk": _maybe_whole, "frame": _maybe_whole}),
    "slot_save": (SlotSave, {"slot": _whole}),
    "slot_go": (SlotGo, {"slot": _whole}),
    "record": (Record, {"on": _flag}),
    "save": (Save, {}),
    "load": (Load, {"file": _file, "watch": _flag}),
    "play": (Play, {"actions": _text(MAX_ACTIONS)}),
    "codec": (Codec, {"codec": _one_of(CODECS)}),
    "rtc": (Rtc, {"sdp": _text(MAX_SDP, empty=False)}),
    "keyframe": (Keyframe, {}),
    "leave": (Leave, {}),
}  # fmt: skip
_INSIDE: dict[str, _Reader] = {
    "attach": (Attach, {"codec": _one_of(CODECS)}),
    "detach": (Detach, {}),
}
NAMES_OF = {cls: name for name, (cls, _) in _CLIENT.items()}
