"""Savings of memory that change nothing: recomputed blocks, frozen matrices in bf16."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.conftest import random_cameras

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.models.backbone import Backbone
from worldline.models.frugal import halve_frozen, recompute_blocks
from worldline.models.lora import LoRARole, add_lora
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, TextEmbedding, WorldlineError

VISIBLE = Visibility(chunk=1, window=3, prefix=1)
EMPTY = TextEmbedding(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")


@pytest.fixture
def batch(tiny_text) -> LatentBatch:
    latents = torch.randn(2, 4, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    return LatentBatch(latents, tiny_text(2), random_cameras(2, 4))


def adapted(base, *names: str) -> list[Backbone]:
    """Roles on one base, every adapter stirred."""
    for i, name in enumerate(names):
        add_lora(base, 2, adapter=name)
        with torch.no_grad():
            for p in LoRARole(base, name).parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return [LoRARole(base, name) for name in names]


def learned(method, batch) -> list[torch.Tensor]:
    """Losses and gradients of every phase."""
    found = []
    for phase in method.phases:
        loss = phase.loss(batch, Rng(0, 3))["loss"]
        loss.backward()
        found += [loss.detach(), *(p.grad for p in method.roles[phase.role].parameters() if p.grad is not None)]
        for module in method.roles.values():
            module.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_blocks_learn_the_same_from_rollouts(tiny_wan, batch, lora):
    """A rollout's past has grown by the backward, and on a shared base another adapter acts then."""
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        if lora:
            nets = adapted(tiny_wan("branch"), "generator", "real", "fake")
        else:
            nets = [tiny_wan("branch"), tiny_wan("branch"), tiny_wan("branch")]
        if again:
            recompute_blocks(nets[0])
            recompute_blocks(nets[2])
        method = DMDConfig().build(*nets, RolloutPlan.few_step(VISIBLE, 2), EMPTY)
        results.append(learned(method, batch))
    assert all(g.abs().max() > 0 for g in results[0])
    torch.testing.assert_close(results[0], results[1], atol=1e-7, rtol=1e-5)


def test_recomputed_blocks_keep_their_inputs_alone(tiny_wan, batch):
    kept = []
    for again in (False, True):
        model = tiny_wan("fused", num_layers=4)
        if again:
            recompute_blocks(model)
        bytes_kept = {}

        def keep(t, found=bytes_kept):
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(batch.latents, torch.rand(2, 4), model.text_context(batch.text), cameras=batch.cameras)
        kept.append(sum(bytes_kept.values()))
    assert kept[1] < 0.3 * kept[0]


def test_only_models_with_blocks_can_recompute():
    with pytest.raises(WorldlineError, match="no blocks to recompute"):
        recompute_blocks(torch.nn.Linear(2, 2))


def test_frozen_matrices_in_bf16_change_nothing_under_autocast(tiny_wan, batch):
    model = tiny_wan("branch").requires_grad_(False)
    half = copy.deepcopy(model)
    halve_frozen(half)
    size = [sum(p.nbytes for p in m.blocks.parameters()) for m in (model, half)]
    assert size[1] < 0.6 * size[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        a, b = (
            m(batch.latents, torch.full((2, 4), 0.6), m.text_context(batch.text), cameras=batch.cameras)
            for m in (model, half)
        )
    assert torch.equal(a, b)
    trained = tiny_wan("branch")
    halve_frozen(trained)
    assert all(p.dtype == torch.float32 for p in trained.parameters()), "what is trained keeps its master weights"


def test_a_moving_target_of_an_adapter_shares_the_base(tiny_wan, batch):
    base = tiny_wan("branch")
    student, teacher = adapted(base, "model", "teacher")
    method = ConsistencyConfig(target_decay=0.5).build(student, teacher, VISIBLE, EMPTY)
    assert method.target.base is base
    before = {k: v.clone() for k, v in method.target.state_dict().items()}
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    method.after_step(0)
    for key, value in method.target.state_dict().items():
        torch.testing.assert_close(value, before[key] + 0.5)
    assert all(torch.isfinite(g).all() for g in learned(method, batch))
