"""The wire: frames pack and unpack, messages are read or refused by name, nothing a client sends gets past."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldline.serve import protocol
from worldline.serve.protocol import (
    HEADER,
    MAX_MESSAGE,
    Ack,
    Attach,
    Detach,
    Frame,
    Hello,
    Input,
    Load,
    Pause,
    Prompt,
    ProtocolError,
    Reset,
    Rewind,
    dump,
    parse,
    parse_inside,
)


def test_a_frame_comes_back_as_it_was():
    frame = Frame(
        7, 4_000_000_000, 12, 99, b"\xff\xd8picture", "h264", protocol.KEY | protocol.FIRST_OF_CHUNK, 0b100001,
        right=-1.0, up=0.0, forward=1.0, yaw=-2.5, pitch=1.5, skipped=3, compute_ms=12.5, queued_ms=40.25,
    )  # fmt: skip
    payload = frame.pack(1_700_000_000_123.5)
    assert len(payload) == HEADER.size + len(frame.picture) == 52 + len(frame.picture)
    assert Frame.unpack(payload) == (frame, 1_700_000_000_123.5)
    assert frame.first


def test_the_header_is_where_the_document_says():
    """docs/protocol.md is what other clients are built from."""
    payload = Frame(1, 2, 3, 4, b"", "jpeg", 5, 6, 1.0, -1.0, 0.5, 7.0, 8.0, 9, 10.0, 11.0).pack(12.0)
    import struct

    for at, kind, value in (
        (0, "B", 2), (1, "B", 1), (2, "B", 0), (3, "B", 5), (4, "I", 1), (8, "I", 2), (12, "I", 3), (16, "I", 4),
        (20, "H", 6), (22, "b", 127), (23, "b", -127), (24, "b", 64), (26, "H", 9), (28, "f", 7.0), (32, "d", 12.0),
        (40, "f", 10.0), (44, "f", 11.0), (48, "f", 8.0),
    ):  # fmt: skip
        assert struct.unpack_from("<" + kind, payload, at)[0] == value, at


@pytest.mark.parametrize("start", [b"\x01\x01\x00", b"\x02\x02\x00", b"\x02\x01\x07", b""])
def test_other_frames_are_refused(start):
    with pytest.raises(ProtocolError):
        Frame.unpack(start + bytes(60))
    with pytest.raises(ProtocolError):
        Frame.unpack(b"\x02\x01" + bytes(49))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type":"hello","version":2,"codecs":["av1","h264","jpeg"],"new":1}', Hello(2, ("h264", "jpeg"))),
        ('{"type":"hello","version":3,"codecs":[]}', Hello(3)),
        ('{"type":"input","seq":3,"keys":["KeyW"],"mouse":[1.5,-2],"axes":[0,-1,1,0]}',
         Input(3, ("KeyW",), (1.5, -2.0), (0.0, -1.0, 1.0, 0.0))),
        ('{"type":"ack","generation":1,"frame":9}', Ack(1, 9)),
        ('{"type":"prompt","id":4,"text":"a cave","mode":"blend"}', Prompt(4, "a cave", "blend")),
        ('{"type":"reset","image":"' + "a" * 32 + '","seed":5}', Reset(None, None, "a" * 32, None, 5)),
        ('{"type":"pause"}', Pause()),
        ('{"type":"rewind","frame":12,"id":1}', Rewind(1, None, 12)),
        ('{"type":"load","file":"' + "0" * 32 + '","watch":true}', Load(None, "0" * 32, True)),
    ],
)  # fmt: skip
def test_messages_are_read(text, message):
    assert parse(text) == message
    assert parse_inside(dump(message)) == message


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "not JSON"), ("[]", "object"), ("null", "object"), ('{"type":[]}', "type"), ('{"type":"detach"}', "type"),
        ('{"type":"attach","codec":"jpeg"}', "type"), ('{"type":"hello"}', "version"), ('{"type":"input"}', "seq"),
        ('{"type":"input","seq":true}', "seq"), ('{"type":"input","seq":1,"mouse":[NaN,0]}', "NaN"),
        ('{"type":"input","seq":1,"mouse":[1e999,0]}', "mouse"), ('{"type":"input","seq":1,"axes":[0,0]}', "axes"),
        ('{"type":"input","seq":1,"axes":[0,0,0,2]}', "axes"),
        ('{"type":"input","seq":1,"keys":"KeyW"}', "keys"), ('{"type":"ack","generation":-1,"frame":0}', "generation"),
        ('{"type":"ack","generation":1,"frame":4294967296}', "frame"), ('{"type":"prompt","text":7}', "text"),
        ('{"type":"prompt","text":"' + "x" * 501 + '"}', "500"), ('{"type":"prompt","text":"\\ud800"}', "surrogate"),
        ('{"type":"prompt","text":"a","mode":"fade"}', "mode"), ('{"type":"reset","image":"../../etc/passwd"}', "image"),
        ('{"type":"load","file":7}', "file"), ('{"type":"step","chunks":65}', "chunks"), ('{"type":"pause","on":1}', "on"),
        ('{"type":"pause","id":"a"}', "id"), ('{"type":"ping","t":Infinity}', "Infinity"), ("[" * 100_000, "not JSON"),
        ('{"type":"ping","t":' + "9" * 5000 + "}", "not JSON|t:"), ('"' + "x" * MAX_MESSAGE + '"', "at most"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_by_name(text, names):
    with pytest.raises(ProtocolError, match=names):
        parse(text)


def test_only_the_inside_may_attach():
    assert parse_inside('{"type":"attach","codec":"h264"}') == Attach("h264")
    assert parse_inside('{"type":"detach"}') == Detach()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["id", "seq", "keys", "mouse", "axes", "generation", "frame", "t", "text", "mode", "start", "image", "prompt", "seed",
          "on", "chunks", "chunk", "slot", "file", "watch", "actions", "codec", "version", "codecs", "resume"]  # fmt: skip
KINDS = [*protocol.NAMES_OF.values(), "attach", "", "x"]


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS) | JSON, fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_anything_is_read_finite_or_refused(kind, fields):
    try:
        message = parse(json.dumps({"type": kind} | fields))
    except ProtocolError:
        return
    numbers = [x for v in vars(message).values() for x in (v if isinstance(v, tuple) else [v]) if isinstance(x, float)]
    assert all(math.isfinite(x) for x in numbers)
    assert parse(dump(message)) == message


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_refused_or_read(text):
    with contextlib.suppress(ProtocolError):
        parse(text)
