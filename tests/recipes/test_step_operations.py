"""Operations of whole updates, as a plan tells them, against torch's count of what the methods compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import random_cameras, randomise
from worldline.methods.base import Method, Rng
from worldline.methods.ode import OdeBatch
from worldline.models.frugal import recompute_blocks
from worldline.models.wan import WanModel
from worldline.recipes.footprint import Costs, phases
from worldline.recipes.load import load_recipe
from worldline.rollout.plan import RolloutPlan
from worldline.schema import TextEmbedding

SMALL = ("model.changes.dim=64", "model.changes.ffn_dim=256", "model.changes.num_heads=2", "model.changes.num_layers=2")


def batch(costs: Costs, anchors: int) -> OdeBatch:
    """One random sample of a recipe's size."""
    clip, config = costs.clip, costs.config
    x = torch.randn(1, clip.frames, config.in_channels, clip.height, clip.width)
    text = TextEmbedding(torch.randn(1, config.text_len, config.text_dim), torch.ones(1, config.text_len).bool(), "")
    return OdeBatch(x, text, random_cameras(1, clip.frames), anchors=torch.stack([x] * anchors, dim=1), end=x)


def built(costs: Costs, empty: TextEmbedding) -> Method:
    section, visibility = costs.section, costs.recipe.rollout.visibility()
    nets = [randomise(WanModel(costs.config), seed) for seed in range(3)]
    options = section.options
    if section.method == "finetune":
        return options.build(nets[0], empty)
    if section.method in ("teacher_forcing", "diffusion_forcing"):
        return options.build(nets[0], visibility, empty)
    if section.method == "ode":
        return options.build(nets[0], visibility)
    if section.method == "consistency":
        return options.build(nets[0], nets[1].requires_grad_(False), visibility, empty)
    plan = RolloutPlan.few_step(visibility, costs.recipe.rollout.steps)
    return options.build(nets[0], nets[1].requires_grad_(False), nets[2], plan, empty)


def counted(method: Method, phase: int, data: OdeBatch, exits: int) -> float:
    """Of one update from one sample, the mean over rollouts' exit steps; a CPU's fused attention is not counted, hence
    the plain one."""
    steps = {int(torch.randint(exits, (), generator=Rng(0, s).shared("exit"))): s for s in range(40)}
    assert len(steps) == exits
    trained = method.phases[phase]
    for name, module in method.roles.items():
        module.requires_grad_(name == trained.role)
    total = 0
    for step in steps.values():
        if trained.name == "discriminator":  # it judges the clip that the critic learnt from
            method.phases[phase - 1].loss(data, Rng(0, step))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            trained.loss(data, Rng(0, step))["loss"].backward()
        total += counter.get_total_flops()
        method.after_step(step)
    return total / exits


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("camera", ()),
        ("ar", ()),
        ("ar", ("stages.ar.train.recompute=true",)),
        ("ode", ()),
        ("cd", ()),
        ("dmd", ()),
        ("dmd", ("stages.dmd.options.chunkwise_backward=true", "stages.dmd.options.critic_draws=2")),
        # Heads as small as they are beside a real teacher: a plan leaves them out.
        ("dmd", tuple(f"stages.dmd.options.{o}" for o in ("regression_weight=0.1", "gan_weight=0.1", "gan.width=4"))),
    ],
)
def test_operations_of_an_update_are_what_torch_counts(stage, overrides):
    recipe = load_recipe("nano-demo", [*SMALL, "data.latents=5", *overrides])
    costs = Costs(recipe, recipe.stages[stage], cameras=True, on_cpu=False)
    data = batch(costs, recipe.rollout.steps)
    method = built(costs, TextEmbedding(data.text.tokens * 0, data.text.mask, ""))
    if recipe.stages[stage].train.recompute:
        recompute_blocks(method.roles["model"])
    planned = {phase.name: phase.flops for phase in phases(costs)[0] if phase.role is not None}
    for number, phase in enumerate(method.phases):
        exits = recipe.rollout.steps if stage == "dmd" else 1
        own = counted(method, number, data, exits)
        name = phase.name if phase.name in planned else next(iter(planned))
        assert own == pytest.approx(planned[name], rel=0.1), phase.name
