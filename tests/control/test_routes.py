"""Strings, poses and key logs to one type; lengths; errors that name the file and the place."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldline.control.actions import controls_of_keys
from worldline.control.camera import CameraIntegrator
from worldline.control.codecs import codec
from worldline.control.routes import Route, Walk, read_route
from worldline.control.trajectories import TrajectoryError, parse
from worldline.functional.camera import integrate
from worldline.schema import TimeGrid, WorldlineError

K = np.array([0.5, 0.8, 0.5, 0.5])
SCALE = 0.005


@pytest.fixture
def walk():
    return Walk(4, CameraIntegrator(K, SCALE, 4.0), key_turn=2.0)


def written(tmp_path, name: str, data) -> str:
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_a_string_gives_its_poses_to_the_latents(walk):
    route = read_route("w*2,l*1", walk)
    assert len(route) == 13
    assert route.text == "w*2,l*1"
    of_latents = route.cameras(K).of_latents(TimeGrid(4)).c2w
    np.testing.assert_allclose(of_latents, parse("w*2,l*1").poses(), atol=1e-15)
    assert route.keys == (("w",),) * 8 + (("right",),) * 4
    # Pixel frames 1..4 are those of latent 1, and have its pose.
    np.testing.assert_array_equal(route.c2w[1:5], route.c2w[4:5].repeat(4, axis=0))
    np.testing.assert_allclose(route.cameras(K, SCALE).scaled(SCALE).c2w, route.c2w, atol=1e-15)


def test_steps_of_a_string_have_the_size_asked_for(walk):
    wide = Walk(walk.stride, walk.walker, walk.key_turn, move=0.5, turn=8)
    np.testing.assert_allclose(read_route("wl*3", wide).c2w[-1], parse("wl*3").poses(0.5, 8)[-1])


def test_every_way_to_write_poses_says_the_same(walk, tmp_path):
    world = integrate(np.eye(4), 40, 10, (5, 1, 2))  # any world frame will do
    poses = world @ parse("wl*2,i*1,dn*1").poses()
    expected = read_route("wl*2,i*1,dn*1", walk)
    matrices = {str(i): m.tolist() for i, m in enumerate(poses)}
    ways = [
        poses.tolist(),
        dict(reversed(matrices.items())),
        {"per": "latent", "poses": matrices},
        {i: {"extrinsic": m, "K": np.eye(3).tolist()} for i, m in matrices.items()},
        [{"c2w": m} for m in matrices.values()],
        {"per": "pixel", "poses": (world @ expected.c2w).tolist()},
    ]
    for i, data in enumerate(ways):
        route = read_route(written(tmp_path, f"{i}.json", data), walk)
        np.testing.assert_allclose(route.c2w, expected.c2w, atol=1e-12)
        assert route.keys == expected.keys


def test_every_way_to_write_a_key_log_says_the_same(walk, tmp_path):
    rows = [["w"]] * 5 + [["w", "left"]] * 2 + [[]] * 5
    ways = {
        "a.json": rows,
        "b.json": {"keys": rows, "seed": 7},
        "c.csv": "\n".join(" ".join(r) for r in rows) + "\n",
        "d.csv": "keys\n" + "\n".join(", ".join(r) for r in rows) + "\n",
        "e.csv": "\n".join(" ".join({"w": "KeyW", "left": "ArrowLeft"}[k] for k in r) for r in rows) + "\n",
    }
    for name, data in ways.items():
        route = read_route(written(tmp_path, name, data), walk)
        assert route.keys == tuple(tuple(r) for r in rows)
        live = walk.walker.fork()
        for c2w, row in zip(route.c2w[1:], rows, strict=True):
            np.testing.assert_array_equal(c2w, live.extend(controls_of_keys([row], 2.0)).c2w[0])
    np.testing.assert_array_equal(walk.walker.pose, np.eye(4))  # reading moves nobody


def test_rows_of_published_vocabularies_are_a_route(walk, tmp_path):
    held = controls_of_keys([["w"]] * 4 + [["w", "left"]] * 4, 2.0)
    meant = Route.of_controls(held, walk)
    for name in ("worldplay", "matrix-game-2", "matrix-game-3", "yume-1.5"):
        route = read_route(written(tmp_path, "log.json", {"codec": name, **codec(name).encode(held)}), walk)
        np.testing.assert_allclose(route.c2w, meant.c2w, atol=1e-6)
    with pytest.raises(WorldlineError, match="expected one of worldplay"):
        read_route(written(tmp_path, "log.json", {"codec": "x"}), walk)


def test_a_text_file_holds_a_string(walk, tmp_path):
    assert read_route(written(tmp_path, "t.txt", "w*4, l*2\n"), walk).text == "w*4,l*2"


def test_lengths(walk):
    route = read_route("w*2", walk)
    assert np.array_equal(route.fitted(9).c2w, route.c2w)
    longer = route.fitted(13, "pad-last")
    assert np.array_equal(longer.c2w[9:], route.c2w[-1:].repeat(4, axis=0))
    assert longer.keys[8:] == ((),) * 4
    shorter = route.fitted(5, "truncate")
    assert np.array_equal(shorter.c2w, route.c2w[:5])
    assert shorter.keys == (("w",),) * 4
    assert len(route.fitted(5, "fit")) == 5
    assert len(route.fitted(21, "fit")) == 21
    assert len(route.fitted(1, "fit")) == 1
    for frames, length, mend in [(13, "error", "pad-last"), (13, "truncate", "pad-last"), (5, "error", "truncate"),
                                 (5, "pad-last", "truncate"), (0, "fit", "at least 1"), (9, "stretch", "one of")]:  # fmt: skip
        with pytest.raises(TrajectoryError, match=mend):
            route.fitted(frames, length)


EYE = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", [EYE], "at least two c2w"),
        ("a.json", 3, "expected rows of keys"),
        ("a.json", {"0": EYE, "4": EYE}, "frame '4' of 2; expected frames 0 to 1"),
        ("a.json", [EYE, EYE[:3]], r"pose 1 has shape \(3, 4\)"),
        ("a.json", [EYE, (2 * np.eye(4)).tolist()], "pose 1 is no rigid camera pose"),
        ("a.json", [EYE, np.diag([1, 1, -1, 1]).tolist()], "pose 1 is no rigid"),
        ("a.json", [EYE, [["x"] * 4] * 4], "pose 1 is no matrix"),
        ("a.json", [EYE, {"w2c": EYE}], "pose 1"),
        ("a.json", {"per": "second", "poses": [EYE, EYE]}, "per 'second'; expected latent or pixel"),
        ("a.json", [["w"], ["x"]], "row 2: key 'x'; expected some of w"),
        ("a.json", [], "has no rows"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "w\nw shift\n", "row 2: key 'shift'"),
        ("a.txt", "w*3\nl*3\n", "is no whole number"),
    ],
)
def test_errors_name_the_file_and_the_place(walk, tmp_path, name, data, message):
    with pytest.raises(WorldlineError, match=message) as caught:
        read_route(written(tmp_path, name, data), walk)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.sampled_from(["w", "left", "x", ""])
        | st.just(EYE),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["0", "1", "2", "keys", "poses", "per", "c2w", "extrinsic"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_read_or_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), "any.json", data)
        with contextlib.suppress(WorldlineError):
            assert len(read_route(path, Walk(4, CameraIntegrator(K, SCALE, 4.0), 2.0))) > 1


def test_a_missing_file_is_said_to_be_missing(walk):
    with pytest.raises(TrajectoryError, match=r"nowhere\.csv is not readable"):
        read_route("nowhere.csv", walk)


def test_routes_have_a_row_of_keys_a_step():
    with pytest.raises(WorldlineError, match="expected"):
        Route(np.eye(4)[None], ((),))
