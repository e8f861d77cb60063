"""Every method trains every architecture, under every kind of control, in chunks of one and of four, through the same code."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import randomise

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.finetune import FinetuneConfig
from worldline.methods.ode import ODEConfig, OdeTrajectories, generate_trajectories
from worldline.methods.teacher_forcing import TeacherForcingConfig
from worldline.models.hunyuan15 import HunyuanConfig, HunyuanModel
from worldline.models.wan import WanConfig, WanModel
from worldline.rollout.plan import RolloutPlan

CONTROLS = {"branch": {"camera": "branch"}, "fused": {"camera": "fused"}, "discrete": {"actions": 10}}


def wan(control, *, whole=False):
    """The same for whole clips and chunks."""
    sizes = dict(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=6, in_channels=4, out_channels=4)
    return WanModel(WanConfig(**sizes, **CONTROLS[control]))


def hunyuan(control, *, whole=False):
    """Whole clips as it was pretrained; with a decoupled prompt where frames do not all see each other."""
    return HunyuanModel(
        HunyuanConfig(
            dim=32, num_heads=2, num_layers=2, text_dim=8, text_lens=(6, 0, 0), in_channels=4, out_channels=4,
            patch_size=(1, 2, 2), ffn_dim=48, refiner_layers=1, refiner_ffn_dim=32, rope_dims=(4, 6, 6),
            text_mode="joint" if whole else "decoupled", **CONTROLS[control],
        )
    )  # fmt: skip


def built(kind, net, visibility, clips, empty, folder):
    """The method, and a batch of its data."""
    if kind == "finetune":
        return FinetuneConfig().build(net(whole=True), empty), clips.select([0, 1])
    if kind == "teacher_forcing":
        return TeacherForcingConfig().build(net(), visibility, empty), clips.select([0, 1])
    if kind == "consistency":
        return ConsistencyConfig(grid_steps=8).build(net(), net(), visibility, empty), clips.select([0, 1])
    if kind == "dmd":
        plan = RolloutPlan.few_step(visibility, 2)
        return DMDConfig().build(net(), net(), net(), plan, empty), clips.select([0, 1])
    config = ODEConfig(steps=2, euler_steps=4, clips=2, clips_per_batch=2)
    generate_trajectories(net(), clips, empty, visibility, config, folder)
    return config.build(net(), visibility), OdeTrajectories(folder, clips).batch(0, 0, 2)


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("control", list(CONTROLS))
@pytest.mark.parametrize("kind", ["finetune", "teacher_forcing", "ode", "consistency", "dmd"])
@pytest.mark.parametrize("family", [wan, hunyuan])
def test_every_phase_teaches_its_role_and_its_control(family, kind, control, chunk, clips, empty, tmp_path):
    visibility = Visibility(chunk=chunk, prefix=1, window=max(4, chunk + 1))
    method, batch = built(
        kind, lambda **how: randomise(family(control, **how)), visibility, clips, empty, tmp_path / "ode"
    )
    for phase in method.phases:
        role = method.roles[phase.role]
        role.zero_grad(set_to_none=True)
        loss = phase.loss(batch, Rng(0, 0))["loss"]
        assert torch.isfinite(loss)
        loss.backward()
        steering = {"branch": "prope_o", "discrete": "action_embedder", "fused": "to_q"}[control]
        grads = [p.grad for name, p in role.named_parameters() if steering in name]
        assert grads
        assert all(g is not None and g.abs().max() > 0 for g in grads), phase.name
