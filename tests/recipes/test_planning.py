"""Plans: parameters of meta models, operations against torch's counter, memory against sums made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldline.cli import main
from worldline.functional.camera import cameras_of
from worldline.functional.masks import Visibility
from worldline.models.frugal import halve_frozen, recompute_blocks
from worldline.models.registry import build_backbone, variant
from worldline.models.wan import WanConfig, WanModel
from worldline.nn.attention import FrameMask
from worldline.recipes.costs import Kept, cache_bytes, forward_flops, kept_for_backward, parameters, prompt_flops
from worldline.recipes.devices import DEVICES, GIB, Device, parse_device
from worldline.recipes.footprint import Costs, Phase, Role, Setting, memory
from worldline.recipes.load import load_recipe
from worldline.recipes.networks import add_adapter
from worldline.recipes.planning import StagePlan, plan_recipe
from worldline.recipes.schema import LoRASection
from worldline.schema import TextEmbedding, WorldlineError

PUBLISHED = {"wan2.1-t2v-1.3b": 1_418_996_800, "wan2.2-ti2v-5b": 4_999_787_712}
T, S = 4, 24  # latent frames, tokens of the nano grid 8 x 12
HUGE = Device("huge", 1e6 * GIB, 1000)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameters_are_those_published(name, count):
    assert parameters(variant(name))[0] == count


def test_matrices_are_those_muon_takes():
    assert parameters(variant("wan2.1-t2v-1.3b"))[1] == 30 * (8 * 1536**2 + 2 * 1536 * 8960)


def inputs(config: WanConfig, frames: int):
    cameras = cameras_of(torch.eye(4).repeat(1, frames, 1, 1), torch.ones(1, frames, 4))
    text = TextEmbedding(torch.randn(1, config.text_len, config.text_dim), torch.ones(1, config.text_len).bool(), "")
    return torch.randn(1, frames, config.in_channels, 8, 12), torch.rand(1, frames), cameras, text


@pytest.mark.parametrize("camera", ["none", "branch", "fused", "plucker", "cross"])
def test_operations_are_what_torch_counts(camera):
    config = variant("nano", num_layers=2, camera=camera, motion=True)
    model, (x, sigma, cameras, text) = WanModel(config), inputs(config, T)
    with FlopCounterMode(display=False) as forward:
        v = model(x, sigma, model.text_context(text), cameras=cameras)
    mine = forward_flops(config, T, S, T * T) + prompt_flops(config)
    assert forward.get_total_flops() == pytest.approx(mine.flops, rel=1e-3)
    with FlopCounterMode(display=False) as backward:
        v.square().mean().backward()
    assert forward.get_total_flops() + backward.get_total_flops() == pytest.approx(mine.trained(), rel=0.05)


@pytest.mark.parametrize("mode", ["joint", "decoupled"])
@pytest.mark.parametrize("camera", ["none", "branch", "fused"])
def test_operations_of_two_streams_are_what_torch_counts(camera, mode):
    config = variant("nano-hy", num_layers=2, camera=camera, motion=True, text_mode=mode, text_lens=(24, 6, 4),
                     byt5_dim=16, byt5_hidden=20, image_dim=12)  # fmt: skip
    model, (x, sigma, cameras, text) = build_backbone(config), inputs(config, T)
    with FlopCounterMode(display=False) as forward:
        v = model(x, sigma, model.text_context(text), cameras=cameras)
    mine = forward_flops(config, T, S, T * T) + prompt_flops(config)
    assert forward.get_total_flops() == pytest.approx(mine.flops, rel=1e-3)
    with FlopCounterMode(display=False) as backward:
        v.square().mean().backward()
    # The camera's matrices take no gradient: a plan counts a little too much.
    assert forward.get_total_flops() + backward.get_total_flops() == pytest.approx(mine.trained(), rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
def test_operations_of_training_an_adapter_leave_out_frozen_weights(recompute):
    config = variant("nano", num_layers=2, camera="branch")
    model, (x, sigma, cameras, text) = WanModel(config).requires_grad_(False), inputs(config, T)
    add_adapter(model, LoRASection(rank=1), "a")
    if recompute:
        recompute_blocks(model)
    with FlopCounterMode(display=False) as counted:
        model(x, sigma, model.text_context(text), cameras=cameras).square().mean().backward()
    mine = forward_flops(config, T, S, T * T) + prompt_flops(config)
    assert counted.get_total_flops() == pytest.approx(mine.trained(lora=True, recompute=recompute), rel=0.1)


def test_operations_of_masked_frames_are_of_the_visible_pairs_alone():
    config, visibility = variant("nano", num_layers=2, camera="fused"), Visibility(chunk=2)
    model, (x, sigma, cameras, text) = WanModel(config), inputs(config, 2 * T)
    seen = visibility.teacher_forcing_mask(T)
    with FlopCounterMode(display=False) as counted:
        model(x, sigma, model.text_context(text), cameras=cameras, mask=FrameMask(seen, S, "blocks"))
    mine = forward_flops(config, 2 * T, S, int(seen.sum())) + prompt_flops(config)
    assert counted.get_total_flops() == pytest.approx(mine.flops, rel=1e-3)


@pytest.mark.parametrize(
    ("forced", "lora"), [(None, None), (Visibility(chunk=2), None), (None, LoRASection(rank=2, targets="all-linear"))]
)
def test_traced_memory_is_what_a_real_forward_keeps(forced, lora):
    config = variant("nano", dim=64, num_heads=2, ffn_dim=128, num_layers=3, camera="branch")
    model, (x, sigma, cameras, text) = WanModel(config), inputs(config, T if forced is None else 2 * T)
    mask = None if forced is None else FrameMask(forced.teacher_forcing_mask(T), S)
    if lora is not None:
        model.requires_grad_(False)
        halve_frozen(model)
        add_adapter(model, lora, "a")
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(x, sigma, model.text_context(text), cameras=cameras, mask=mask)
    weights = {p.data_ptr() for p in model.parameters()}
    real = sum(s.nbytes() for at, s in kept.items() if at not in weights)
    kept = kept_for_backward(config, T, 8, 12, forced=forced, lora=lora)
    assert kept.fixed + kept.outside + 3 * (kept.fixed_block + kept.block) == pytest.approx(real, rel=0.02)


def test_a_camera_branch_has_a_cache_of_its_own():
    config = variant("wan2.1-t2v-1.3b")
    assert cache_bytes(config, 1, 1560) == 30 * 2 * 1560 * 1536 * 2 == 287_539_200  # 287.5 MB a latent
    assert cache_bytes(replace(config, camera="branch"), 21, 1560) == 2 * 21 * 287_539_200


PLAIN = Setting(batch=1, accumulation=1, ema=False, optimizer="adamw")
MODEL = Role("model", PUBLISHED["wan2.1-t2v-1.3b"], 0, trained=True)


def held(roles: tuple[Role, ...], setting: Setting, role: str = "model") -> float:
    return sum(memory(roles, [Phase("p", role, 0.0)], 30, setting)[0].values())


def test_adamw_holds_sixteen_bytes_a_parameter():
    assert held((MODEL,), PLAIN) == 16 * MODEL.parameters
    assert held((MODEL,), PLAIN) / 1e9 == pytest.approx(22.7, abs=0.01)
    assert held((MODEL,), replace(PLAIN, ema=True)) == 20 * MODEL.parameters
    assert held((MODEL,), replace(PLAIN, moments="bf16")) == 12 * MODEL.parameters
    assert held((MODEL,), replace(PLAIN, shards=8)) == 2 * MODEL.parameters


def test_muon_holds_one_moment_of_matrices():
    role = replace(MODEL, matrices=1000)
    assert held((role,), PLAIN) - held((role,), replace(PLAIN, optimizer="muon")) == 4 * 1000


def test_three_networks_of_distribution_matching():
    trio = (replace(MODEL, name="generator"), replace(MODEL, name="real", trained=False), replace(MODEL, name="fake"))
    # fp32 weights of three, two moments of two, the gradient of the one being trained
    assert held(trio, PLAIN, "generator") == (3 * 4 + 2 * 8 + 4) * MODEL.parameters
    trio = tuple(replace(role, matrices=role.parameters) for role in trio)
    assert held(trio, PLAIN, "generator") == (2 * 4 + 2 + 2 * 8 + 4) * MODEL.parameters, "the frozen score in bf16"
    assert held(trio, replace(PLAIN, half=False), "generator") == (3 * 4 + 2 * 8 + 4) * MODEL.parameters


def test_networks_of_a_stage_are_those_the_run_builds():
    """Adapters: one base in bf16, and what each role adds to it."""
    overrides = [f"stages.{s}.lora.rank=4" for s in ("camera", "ar", "ode", "cd", "dmd")]
    found = {s: [r.name for r in stage(s, "nano-demo", *overrides).roles] for s in ("camera", "ode", "cd", "dmd")}
    assert found == {
        "camera": ["model", "base of model"],
        "ode": ["model", "base of model"],
        "cd": ["model", "teacher", "target", "base of model, teacher"],
        "dmd": ["generator", "real", "fake", "base of generator, real, fake"],
    }
    dmd = stage("dmd", "nano-demo", *overrides)
    one = 6 * 8 * 4 * 2 * 256  # layers, projections, rank, in and out
    assert dmd.trained == 2 * one
    names = [r.name for r in stage("dmd", "nano-demo", *overrides[3:]).roles]
    assert names == ["generator", "fake", "base of generator", "base of real, fake"]


def test_activations_give_way_to_gradients_and_recomputing_keeps_one_block():
    kept = Kept(fixed=11.0, fixed_block=20.0, outside=5.0, block=100.0, working=30.0)
    phase = Phase("p", "model", 0.0, kept=kept, residual=3.0, copies=50.0, cache=7.0)

    def peak(parameters: int, **changes: object) -> float:
        small = replace(MODEL, parameters=parameters)
        return sum(memory((small,), [phase], 10, replace(PLAIN, **changes))[0].values()) - 12 * parameters

    beginning = 11 + 10 * 20 + 2 * (5 + 10 * 100 + 50 + 30 + 7)
    assert peak(0, batch=2) == beginning
    assert peak(10, batch=2) == beginning, "no gradient is there yet"
    assert peak(10, batch=2, accumulation=2) == beginning + 40
    assert peak(1000, batch=2) == 4000 + 11 + 20 + 2 * (5 + 100 + 30 + 7), (
        "when it ends all gradients are, and one block"
    )
    assert peak(0, recompute=True) == 11 + 5 + 10 * 3 + 20 + 100 + 30 + 7


def stage(name: str, recipe: str = "nano-demo", *overrides: str, device: Device = HUGE, devices: int = 1) -> StagePlan:
    return next(
        s for s in plan_recipe(load_recipe(recipe, overrides), device, devices=devices).stages if s.name == name
    )


def test_operations_of_a_step_follow_its_passes():
    recipe = load_recipe("nano-demo")
    costs = Costs(recipe, recipe.stages["ar"], cameras=True, on_cpu=False)
    forced = (costs.forced(9) + costs.prompt).flops
    assert stage("ar").flops_per_step == pytest.approx(16 * 3 * forced)
    assert stage("ar", "nano-demo", "stages.ar.train.recompute=true").flops_per_step == pytest.approx(16 * 4 * forced)
    assert stage("ode").once_flops == pytest.approx(32 * 16 * 2 * forced)  # clips, Euler steps, guidance
    assert stage("cd").flops_per_step == pytest.approx(16 * 6 * forced)  # training, teacher twice, target
    assert stage("cd", "nano-demo", "stages.cd.options.guidance=1.0").flops_per_step == pytest.approx(16 * 5 * forced)


def test_a_rollout_denoises_half_its_steps_without_gradients():
    recipe = load_recipe("nano-demo", ["rollout.window=null", "rollout.steps=4", "stages.ode.options.steps=4"])
    costs = Costs(recipe, recipe.stages["dmd"], cameras=True, on_cpu=False)
    one = [forward_flops(costs.config, 1, S, n).flops for n in range(1, 10)]  # chunk n sees n latents
    free, exits = costs.rollout(9)
    assert exits.flops == pytest.approx(sum(one[1:]))
    assert free.flops == pytest.approx(sum(one[:-1]) + 1.5 * sum(one[1:]))


def test_hours_are_operations_over_speed():
    one, eight = stage("camera"), stage("camera", devices=8)
    assert one.seconds == pytest.approx(one.flops_per_step * one.steps / (1000e12 * 0.4))
    assert eight.global_batch == one.global_batch
    assert eight.seconds == pytest.approx(one.seconds / 8), "the same samples on eight times the devices"


def test_small_global_batches_are_warned_of():
    assert "below 16" in stage("camera", "nano-demo", "stages.camera.train.batch_size=8").warnings[0]
    assert "accumulation=2" in stage("camera", "nano-demo", "stages.camera.train.batch_size=8").warnings[0]
    assert not stage("camera").warnings
    assert "below 16" in stage("camera", "nano-demo", "stages.camera.train.batch_size=8", devices=2).warnings[0]


def test_devices_share_samples_and_what_can_be_cut_of_the_weights():
    one, eight = (stage("camera", "wan-1.3b", devices=n).memory for n in (1, 8))
    for kind in ("weights", "optimizer", "gradients", "ema"):
        assert eight[kind] == pytest.approx(one[kind] / 8), kind
    assert eight["activations"] == one["activations"], "one sample at a time on each"
    muon = [stage("camera", "nano-demo", "stages.camera.train.optimizer=muon", devices=n).memory for n in (1, 2)]
    assert muon[1]["weights"] == muon[0]["weights"]
    assert muon[1]["activations"] == pytest.approx(muon[0]["activations"] / 2, rel=0.03), "casts of weights are whole"
    spread = stage("camera", "wan-1.3b", "stages.camera.train.sequence_parallel=2", devices=8).memory
    assert spread["weights"] == eight["weights"]
    assert spread["activations"] == pytest.approx(eight["activations"] / 2, rel=0.02), "half the tokens of a sample"
    with pytest.raises(WorldlineError, match="do not divide"):
        stage("camera", "wan-1.3b", devices=5)


def mended(gigabytes: float, *overrides: str) -> tuple[str, ...]:
    device = Device("d", (gigabytes * 1e9 + 2.5 * GIB) / 0.92, 1)
    return stage("camera", "nano-demo", *overrides, device=device).mends


def test_mends_are_the_cheapest_that_do():
    one = ("stages.camera.train.batch_size=1", "stages.camera.train.accumulation=16")
    whole, small = (stage("camera", "nano-demo", *n).peak / 1e9 for n in ((), one))
    assert mended(whole * 1.01) == ()
    (only,) = (m for m in mended(small * 1.01) if "shorter" not in m)
    assert only == "--set stages.camera.train.batch_size=1 --set stages.camera.train.accumulation=16"
    assert any("train.recompute=true" in m for m in mended(small * 0.9))


def test_every_mend_that_a_recipe_can_say_is_loadable():
    whole = stage("camera")
    needs = [whole.peak]
    for mend in mended(1e-4):
        overrides = [word for word in mend.split() if word.startswith("stages.")]
        if overrides:
            needs.append(stage("camera", "nano-demo", *overrides).peak)
    assert len(needs) >= 5
    assert max(needs[1:]) < needs[0], "each takes less memory than the stage as it was"


def test_the_small_recipes_fit_the_device_they_name():
    assert all(s.fits for s in plan_recipe(load_recipe("wan-5b-small"), DEVICES["h100"]).stages)


def test_disk_of_latents_and_trajectories():
    plan = plan_recipe(load_recipe("wan-1.3b"), HUGE)
    assert plan.latent_bytes == 21 * 16 * 60 * 104 * 4
    assert plan.text_bytes == 512 * 4096 * 2, "of one distinct prompt at full length, in bf16"
    ode = next(s for s in plan.stages if s.name == "ode")
    assert ode.disk["trajectories"] == 2048 * 5 * 21 * 16 * 60 * 104 * 2


def test_devices_are_known_or_spelled_out():
    assert parse_device("mi300x:192:1307") == Device("mi300x", 192 * GIB, 1307)
    assert parse_device("a100") is DEVICES["a100-80g"]
    assert parse_device("4090") is DEVICES["rtx4090"]
    for text in ("h20", "h20:180", "h20:x:1", "h20:-1:1"):
        with pytest.raises(WorldlineError, match="h200" if text in ("h20", "h20:180") else "expected"):
            parse_device(text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.latents=20"], "set latents to 17"),
        (["data.latents=40"], "clips of 81 frames have 21"),
        (["data.video.height=470"], "multiples of 16"),
        (["stages.dmd.options.latents=30"], "the clips have 21"),
    ],
)
def test_what_does_not_fit_together_is_said(overrides, message):
    with pytest.raises(WorldlineError, match=message):
        plan_recipe(load_recipe("wan-1.3b", overrides), HUGE)


def test_the_command_prints_tables_and_json(capsys):
    assert main(["plan", "nano-smoke", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "camera" in printed
    assert "below 16" in printed
    assert main(["plan", "nano-smoke", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in data["stages"]] == ["codec", "base", "camera", "ar", "ode", "cd", "dmd"]
    assert data["stages"][0]["peak"] == pytest.approx(sum(data["stages"][0]["memory"].values()))
    assert main(["plan", "nano-smoke", "--device", "h20"]) == 2
    assert main(["plan", "nano-smoke", "--devices", "0"]) == 2
