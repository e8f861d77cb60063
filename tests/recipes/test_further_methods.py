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


def test_what_dmds_terms_cost_is_planned():
    def flops(*options: str) -> float:
        return planned("dmd", *(f"stages.dmd.options.{option}" for option in options)).flops_per_step

    plain = flops()
    assert flops("share_rollout=true") < plain
    for dear in ("gan_weight=0.1", "regression_weight=0.1", "critic_draws=2"):
        assert plain < flops(dear) < 2.5 * plain
    assert flops("gan_weight=0.1", "gan.smoothness=0.0") < flops("gan_weight=0.1")


def test_all_of_dmds_options_from_a_recipe(smallest, tmp_path):
    options = "{gan_weight: 0.1, gan: {width: 8}, regression_weight: 0.1, critic_draws: 2, share_rollout: true, offload: [real]}"
    overrides = [f"stages.dmd.options={options}", "stages.dmd.train.role_lr={discriminator: 1e-4}"]
    run(load_recipe(smallest, overrides), tmp_path / "run", until="dmd")
    assert load_model(tmp_path / "run/dmd/model").config.num_layers == 1
    log = (tmp_path / "run/dmd/train/log.jsonl").read_text()
    assert all(key in log for key in ("discriminator/roughness", "generator/regression", "generator/adversarial"))
