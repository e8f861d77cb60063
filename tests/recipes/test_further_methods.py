"""Methods beside the standard chain, from a recipe to a trained stage and a plan."""

from __future__ import annotations

import pytest

from worldline.models.registry import load_model
from worldline.recipes.devices import GIB, Device
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import run
from worldline.recipes.planning import plan_recipe

HUGE = Device("huge", 1e6 * GIB, 1000)
FORCED = ["stages.ar.method=diffusion_forcing", "stages.ar.options=null", "stages.ar.options.clean_past=0.5"]


def planned(name, *overrides):
    found = plan_recipe(load_recipe("nano-demo", overrides), HUGE).stages
    return next(stage for stage in found if stage.name == name)


def test_diffusion_forcing_takes_the_place_of_teacher_forcing(smallest, tmp_path):
    run(load_recipe(smallest, FORCED), tmp_path / "run", until="ode")
    assert load_model(tmp_path / "run/ode/model").config.num_layers == 1
    forced, both = planned("ar", *FORCED), planned("ar")
    assert both.flops_per_step / forced.flops_per_step == pytest.approx(2, abs=0.3), "T frames instead of 2 T"
    assert forced.memory["activations"] < both.memory["activations"]


def test_a_chunkwise_backward_is_planned_in_less_memory(smallest, tmp_path):
    whole, one = planned("dmd"), planned("dmd", "stages.dmd.options.chunkwise_backward=true")
    assert one.memory["activations"] < whole.memory["activations"]
    assert whole.flops_per_step < one.flops_per_step < 1.2 * whole.flops_per_step
