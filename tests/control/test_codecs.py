"""Vocabularies of published world models: golden tables, round trips, and what they cannot say."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from worldline.control import actions
from worldline.control.actions import ActionError
from worldline.control.codecs import CODECS, codec
from worldline.schema import Controls, ShapeError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "codecs.json").read_text())
STRIDE = 4
KEYS = [["a", "d", ""], ["w", "s", ""], ["u", "dn", ""], ["left", "right", ""], ["up", "down", ""]]


def held(latents: list[list[str]], turn: float = 2.0) -> Controls:
    """Keys held for whole latents."""
    return actions.controls_of_keys([keys for keys in latents for _ in range(STRIDE)], turn)


@pytest.mark.parametrize("name", [k for k in GOLDEN["classes"] if k != "keys"])
def test_class_numbers_are_the_published_ones(name):
    said = codec(name).encode(held(GOLDEN["classes"]["keys"]))
    assert said == {"classes": [0, *GOLDEN["classes"][name]]}  # nothing drives latent 0


@pytest.mark.parametrize("name", GOLDEN["keyboard"])
def test_keyboard_and_mouse_rows_are_the_published_ones(name):
    table = GOLDEN["keyboard"][name]
    said = codec(name).encode(held([row[0] for row in table["rows"]], table["turn"]), turn=table["turn"])
    keyboard = [row[1] for row in table["rows"] for _ in range(STRIDE)]
    assert said["keyboard"] == [*keyboard, keyboard[-1]]  # a row a frame; the last one drives nothing
    assert ("mouse" in said) == (len(table["rows"][0]) == 3)
    if "mouse" in said:
        mouse = [row[2] for row in table["rows"] for _ in range(STRIDE)]
        np.testing.assert_allclose(said["mouse"], [*mouse, mouse[-1]], atol=1e-6)


def test_sentences_are_the_published_ones():
    said = codec("yume-1.5").encode(held([row[0] for row in GOLDEN["sentences"]]))
    still = GOLDEN["sentences"][0]
    for column, key in enumerate(("keys", "mouse", "text"), start=1):
        assert said[key] == [still[column], *[row[column] for row in GOLDEN["sentences"]]]
    told = ["This video depicts a city walk scene." + text for text in said["text"]]
    assert codec("yume-1.5").decode({"text": told}).keys == codec("yume-1.5").decode(said).keys


@pytest.mark.parametrize("swapped", ["", ":swapped"])
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("turn", [2.0, 0.75])
def test_what_can_be_said_comes_back(name, swapped, turn):
    """All 243 actions: those that a vocabulary can say survive it, through JSON; the others are refused."""
    spoken = codec(name + swapped)
    sayable, refused = 0, []
    for keys in product(*KEYS):
        controls = held([[k for k in keys if k]] * 2, turn)
        try:
            said = spoken.encode(controls, turn=turn)
        except ActionError as error:
            refused.append(str(error))
            continue
        back = spoken.decode(json.loads(json.dumps(said)), turn=turn)
        np.testing.assert_allclose(back.move, controls.move)
        np.testing.assert_allclose(back.look, controls.look, atol=1e-4)
        sayable += 1
    assert all(name in why or "81 actions" in why for why in refused)
    assert sayable == {"matrix-game-2-gta": 9, "matrix-game-2-templerun": 7}.get(name, 81)


def test_the_defect_exchanges_left_and_right_and_nothing_else():
    """minWM trains d -> 27, a -> 36, and drives a -> 27, d -> 36: what it drove is read back with the flag."""
    walk = held([["a"], ["w", "d"], ["left"], ["s", "up"]])
    driven = codec("minwm:swapped").encode(walk)
    assert driven == codec("worldplay:swapped").encode(walk)
    assert driven["classes"] == actions.class_ids(actions.encode(walk, STRIDE, 2.0), "minwm-strings").tolist()
    meant, taken = codec("minwm:swapped").decode(driven), codec("minwm").decode(driven)
    np.testing.assert_allclose(meant.move, walk.move)
    np.testing.assert_allclose(taken.move, walk.move * [-1, 1, 1])
    np.testing.assert_allclose(taken.look, walk.look)


def test_a_mouse_is_continuous_where_keys_are_not():
    look = np.array([[0.3, -0.6, 0]] * STRIDE + [[-3.0, 0, 0]] * STRIDE)
    controls = Controls(np.zeros((8, 3)), look)
    for name, unit in (("matrix-game-2", 0.1 / 2.0), ("matrix-game-3", 1 / 15)):
        said = codec(name).encode(controls)
        np.testing.assert_allclose(said["mouse"][0], [-0.6 * unit, 0.3 * unit], atol=1e-6)
        np.testing.assert_allclose(codec(name).decode(said).look, look, atol=1e-4)
    weak = {"keyboard": [[0] * 6] * 5, "mouse": [[0.019, 0.02]] * 5}
    np.testing.assert_allclose(codec("matrix-game-3").decode(weak).look[0], [0.3, 0, 0], atol=1e-6)
    with pytest.raises(ActionError, match="takes for none"):
        codec("matrix-game-3").encode(Controls(np.zeros((4, 3)), [[0.2, 0, 0]] * 4))


def test_refusals():
    with pytest.raises(ActionError, match="expected one of worldplay, minwm"):
        codec("world-play")
    with pytest.raises(ActionError, match="asks for a; it has w, s and a mouse"):
        codec("matrix-game-2-gta").encode(held([["a"]]))
    with pytest.raises(ActionError, match="left and right alone"):
        codec("matrix-game-2-gta").encode(held([["up"]]))
    with pytest.raises(ActionError, match="one at a time"):
        codec("matrix-game-2-templerun").encode(held([["a", "left"]]))
    with pytest.raises(ActionError, match="expected one in each"):
        codec("matrix-game-2-templerun").decode({"keyboard": [[0] * 7] * 5})
    with pytest.raises(ActionError, match="jumps or attacks"):
        codec("matrix-game-1").decode({"keyboard": [[0, 0, 0, 0, 1, 0]] * 5, "mouse": [[0, 0]] * 5})
    with pytest.raises(ActionError, match="0 and 1 in 4 columns"):
        codec("matrix-game-2").decode({"keyboard": [[1, 0]] * 5, "mouse": [[0, 0]] * 5})
    with pytest.raises(ActionError, match="expected `mouse`"):
        codec("matrix-game-2").decode({"keyboard": [[1, 0, 0, 0]] * 5})
    with pytest.raises(ActionError, match="moves up or down"):
        codec("yume-1.5").encode(held([["u"]]))
    with pytest.raises(ActionError, match="'W' with '↗'"):
        codec("yume-1.5").decode({"keys": ["W"], "mouse": ["↗"]})
    for name in CODECS:
        with pytest.raises(ShapeError, match="whole latents"):
            codec(name).encode(Controls.still(5))


def test_the_program_on_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "adapting.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    exec(compile(program, "docs/adapting.md", "exec"), {})
