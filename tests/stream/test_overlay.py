"""Keys drawn onto frames: the right caps light up, and the rest of the picture stays."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.schema import ShapeError, WorldlineError
from worldline.stream.overlay import CAPS_HIGH, RARE, TURNING, WALKING, draw_keys

GREY = np.full((64, 96, 3), 100, np.uint8)


def drawn(*rows: tuple[str, ...]) -> np.ndarray:
    return np.stack(list(draw_keys([GREY] * len(rows), rows, scale=4))).astype(int)


def centre(changed: np.ndarray) -> tuple[float, float]:
    """Where pixels differ, as shares of width and height."""
    y, x = np.nonzero(changed.any(axis=-1))
    return x.mean() / changed.shape[1], y.mean() / changed.shape[0]


def test_frames_grow_and_keep_what_is_not_under_a_cap():
    frames = drawn(("w",), ())
    assert frames.shape == (2, 256, 384, 3)
    assert (frames[:, :150] == 100).all()
    assert (frames[1] != 100).any(), "idle caps are seen"


def test_a_held_key_lights_its_own_cap():
    idle, *lit = drawn((), *((key,) for key in (*WALKING, *TURNING)))
    places = dict(zip((*WALKING, *TURNING), (centre(frame != idle) for frame in lit), strict=True))
    assert all((frame - idle).max() > 80 for frame in lit)
    assert places["a"][0] < places["s"][0] < places["d"][0] < 0.5 < places["left"][0] < places["right"][0]
    assert places["w"][0] == pytest.approx(places["s"][0], abs=0.01)
    assert places["w"][1] < places["s"][1] == pytest.approx(places["a"][1], abs=0.01)
    both = drawn((), ("w", "right"))[1] - idle
    assert np.array_equal(both, (lit[0] - idle) + (lit[-1] - idle))


@pytest.mark.parametrize("key", RARE)
def test_rare_keys_have_caps_where_a_clip_uses_them(key):
    usual, rare = drawn((), ()), drawn((), (key,))
    assert not np.array_equal(usual[0], rare[0])
    x, _ = centre(rare[1] != rare[0])
    assert 0.4 < x < 1
    # Its opposite has a cap too: the two are one above the other.
    rows = np.flatnonzero((usual[0] != rare[0]).any(axis=(1, 2)))
    assert rows.max() - rows.min() > 1.5 * 256 / CAPS_HIGH


def test_arrows_point_where_they_turn():
    idle, left, right = drawn((), ("left",), ("right",))
    # Ink is dark on a lit cap: the left arrow's tip is on the left, where it has the least height.
    for frame, tip in ((left, "first"), (right, "last")):
        y, x = np.nonzero((frame != idle).any(axis=-1))
        cap = frame[y.min() : y.max(), x.min() : x.max()].sum(axis=-1)
        heights = (cap < 200).sum(axis=0)
        columns = np.flatnonzero(heights)
        ends = heights[columns[0]], heights[columns[-1]]
        assert (ends[0] < ends[1]) == (tip == "first")


def test_one_row_a_frame_and_known_keys():
    with pytest.raises(ShapeError, match="more frames than the 1 rows"):
        list(draw_keys([GREY, GREY], [()]))
    assert len(list(draw_keys([GREY], [(), ()]))) == 1, "a clip may stop early"
    with pytest.raises(WorldlineError, match=r"keys \['jump'\] have no cap"):
        draw_keys([GREY], [("jump",)])
    with pytest.raises(WorldlineError, match="scale 0"):
        draw_keys([GREY], [()], scale=0)
