"""The wire format and the parsing of what a client may send."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldline.serve.protocol import HEADER, MAX_MESSAGE, Ack, Frame, Input, Pause, Prompt, ProtocolError, Reset, parse


def test_a_frame_comes_back_as_it_was_sent():
    frame = Frame(
        generation=3, frame=70_000, chunk=17, seq=2**32 - 1, keys=0b100001, first=True, compute_ms=12.5, jpeg=b"x"
    )
    assert HEADER.size == 32  # the page counts on it
    assert Frame.unpack(frame.pack(1.5e12)) == (frame, 1.5e12)
    for bad in (b"", b"\x01", b"\x02" + frame.pack(0)[1:]):
        with pytest.raises(ProtocolError):
            Frame.unpack(bad)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "input", "seq": 4, "keys": ["KeyW"], "mouse_dx": -3}', Input(4, ("KeyW",), -3.0)),
        ('{"type": "input", "seq": 4}', Input(4, (), 0.0)),
        ('{"type": "reset"}', Reset()),
        ('{"type": "reset", "start": "hall", "seed": 7, "prompt": "x"}', Reset("hall", "x", 7)),
        ('{"type": "prompt", "text": "a cave"}', Prompt("a cave")),
        ('{"type": "ack", "generation": 1, "frame": 9}', Ack(1, 9)),
        ('{"type": "pause", "on": false}', Pause(False)),
    ],
)
def test_messages_are_understood(text, message):
    assert parse(text) == message


BAD = [
    "", "w", "[]", "null", "{}", '{"type": "fly"}', '{"type": ["input"]}', '{"type": "input"}',
    '{"type": "input", "seq": -1}', '{"type": "input", "seq": 1.5}', '{"type": "input", "seq": true}',
    '{"type": "input", "seq": 1, "keys": "KeyW"}', '{"type": "input", "seq": 1, "keys": [1]}',
    '{"type": "input", "seq": 1, "mouse_dx": NaN}', '{"type": "input", "seq": 1, "mouse_dx": Infinity}',
    '{"type": "input", "seq": 1, "mouse_dx": 1e9}', '{"type": "reset", "seed": -1}', '{"type": "reset", "start": 3}',
    json.dumps({"type": "prompt", "text": "x" * 501}), json.dumps({"type": "input", "seq": 1, "keys": ["KeyW"] * 17}),
    '{"type": "reset", "image": "?"}', '{"type": "reset", "image": 7}',
    "x" * (MAX_MESSAGE + 1), "[" * 9000, '{"type": "ack", "generation": 1}',
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_a_protocol_error(text):
    with pytest.raises(ProtocolError):
        parse(text)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
fields = st.sampled_from(["type", "seq", "keys", "mouse_dx", "start", "prompt", "seed", "text", "generation", "frame"])
kinds = st.fixed_dictionaries({"type": st.sampled_from(["input", "reset", "prompt", "ack", "pause"])})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.builds(lambda a, b: {**a, **b}, st.dictionaries(fields, json_values, max_size=5), kinds))
def test_no_message_escapes_the_protocol(raw):
    try:
        parse(json.dumps(raw))
    except ProtocolError:
        return
