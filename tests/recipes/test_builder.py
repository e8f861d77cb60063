"""The strict builder: what it accepts, and what its errors say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from worldline.recipes.builder import Place, RecipeError, build, to_data


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    kind: Literal["adamw", "sgd"] = "adamw"


@dataclass(frozen=True, kw_only=True)
class Knife:
    sharp: bool = True


@dataclass(frozen=True, kw_only=True)
class Thing:
    name: str
    steps: int = 1
    window: int | None = None
    optim: Optim = field(default_factory=Optim)
    parts: dict[str, Optim] = field(default_factory=dict)
    levels: tuple[int, ...] = ()
    tool: Literal["knife", "optim"] = "optim"
    options: Any = None

    @staticmethod
    def variant_types(data, place):
        return {"options": Knife if data.get("tool") == "knife" else Optim}

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; expected at least 0")


def make(**data):
    return build(Thing, {"name": "x", **data}, Place("r.yaml"))


def test_types_are_built():
    thing = make(optim={"lr": "1e-4", "betas": [0, 1]}, parts={"a": {"lr": 2}}, levels=[1, 2], window=None)
    assert thing.optim.lr == 1e-4
    assert thing.optim.betas == (0.0, 1.0)
    assert thing.parts["a"].lr == 2.0
    assert isinstance(thing.parts["a"].lr, float)
    assert thing.levels == (1, 2)


def test_a_neighbour_chooses_the_options():
    assert make(tool="knife").options == Knife()
    assert make(tool="knife", options={"sharp": False}).options == Knife(sharp=False)
    with pytest.raises(RecipeError, match=r"options\.sharp: unknown key"):
        make(options={"sharp": False})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stepz": 3}, r"r\.yaml: stepz: unknown key; did you mean 'steps'\?"),
        ({"optim": {"lrr": 1}}, r"optim\.lrr: unknown key; did you mean 'lr'\? valid: betas, kind, lr"),
        ({"parts": {"a": {"kin": 1}}}, r"parts\.a\.kin: unknown key; did you mean 'kind'"),
        ({"steps": "three"}, r"steps: 'three' is a str; expected an int"),
        ({"steps": True}, r"steps: True is a bool; expected an int"),
        ({"steps": 1.5}, r"steps: 1.5 is a float; expected an int"),
        ({"optim": {"lr": "fast"}}, r"optim\.lr: 'fast' is a str; expected a float"),
        ({"optim": {"betas": [1]}}, r"optim\.betas: 1 values; expected 2"),
        ({"optim": {"kind": "adam"}}, r"optim\.kind: 'adam' is not a choice; did you mean 'adamw'"),
        ({"optim": 3}, r"optim: 3 is not a mapping"),
        ({"window": "all"}, r"window: 'all' is a str; expected an int"),
        ({"name": None}, r"name: None is null; expected a str"),
        ({"steps": -1}, r"r\.yaml: steps is -1; expected at least 0"),
    ],
)
def test_errors_name_the_key_and_the_mend(data, message):
    with pytest.raises(RecipeError, match=message):
        make(**data)


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match="name: missing"):
        build(Thing, {}, Place("r.yaml"))


def test_data_round_trips():
    thing = make(tool="knife", levels=[3], parts={"a": {}})
    assert build(Thing, to_data(thing), Place("again")) == thing
