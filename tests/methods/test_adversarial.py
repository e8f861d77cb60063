"""Terms from real clips beside distribution matching, and what saves rollouts and memory there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.methods.conftest import EMPTY
from tests.methods.test_known_answers import MU, VISIBLE, Gaussian, S, marginal_std
from torch import nn

from worldline.functional.losses import surrogate
from worldline.methods.adversarial import AdversarialConfig, features
from worldline.methods.base import Rng
from worldline.methods.dmd import DMDConfig
from worldline.methods.regression import real_regression
from worldline.models.lora import LoRARole, add_lora
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, TextEmbedding, WorldlineError
from worldline.train.loop import TrainConfig, Trainer

PLAN = RolloutPlan.few_step(VISIBLE)
ALL = dict(gan_weight=0.1, regression_weight=0.1, critic_draws=2, share_rollout=True, chunkwise_backward=True)


@pytest.fixture
def gaussian():
    """Clips of N(MU, S^2)."""
    g = torch.Generator().manual_seed(0)
    text = TextEmbedding(torch.zeros(16, 6, 8), torch.ones(16, 6, dtype=torch.bool))
    return LatentBatch(MU + S * torch.randn(16, 4, 2, 4, 6, generator=g), text, None)


class Shifted(nn.Module):
    """Generates N(offset, S^2) whatever it is given."""

    def __init__(self, offset: float = -1.0) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def text_context(self, text):
        return None

    def forward(self, x, sigma, text, **_):
        return x - (self.offset + S * x)  # at sigma 1: x0 = offset + S noise


class Seeing(Gaussian):
    """An exact score whose one block passes every place's channels on, beside as many ones."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.config = nn.ModuleList([nn.Identity()]), SimpleNamespace(dim=4)

    def forward(self, x, sigma, text, **kwargs):
        places = x.movedim(2, -1).flatten(2, 3)
        self.blocks[0](torch.cat([places, torch.ones_like(places)], dim=-1))
        return super().forward(x, sigma, text, **kwargs)


def test_the_adversary_alone_moves_the_student_to_the_data(gaussian):
    """Both scores agree everywhere, so distribution matching is silent; only the discriminator knows real clips."""
    torch.manual_seed(0)
    student, plan = Shifted(), RolloutPlan(VISIBLE, (1.0,))
    cfg = DMDConfig(guidance=1.0, gan_weight=1.0, gan=AdversarialConfig(width=8))
    method = cfg.build(student, Seeing(), Seeing(), plan, EMPTY)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr, betas=(0.0, 0.99))
        for net, lr in ((student, 0.03), (method.discriminator, 0.02))
    ]
    offsets = []
    for step in range(120):
        for optimizer, loss in zip(optimizers, (method.generator_loss, method.discriminator_loss), strict=True):
            optimizer.zero_grad()
            values = loss(gaussian, Rng(0, step))
            values["loss"].backward()
            optimizer.step()
            assert values.get("gradient", torch.tensor(0.0)) == 0
        offsets.append(student.offset.item())
    assert sum(offsets[-30:]) / 30 == pytest.approx(MU, abs=0.25)


def test_features_are_those_of_the_blocks_and_gradients_reach_the_clip(tiny_wan, clips):
    model, batch = tiny_wan("fused").requires_grad_(False), clips.select([0, 1])
    x = batch.latents.clone().requires_grad_()
    outputs = []
    hook = model.blocks[1].register_forward_hook(lambda m, args, out: outputs.append(out))
    first, second = features(model, (0, 1), x, torch.rand(2, 5), batch.text, batch.cameras)
    hook.remove()
    assert first.shape == second.shape == (2, 32, 5, 2, 3)
    torch.testing.assert_close(second[0, :, 3, 1, 2], outputs[0][0, 3, 5])  # row-major places
    (grad,) = torch.autograd.grad(second.square().sum(), x)
    assert (grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()
    assert not model.blocks[0]._forward_hooks, "hooks are taken off"


def test_given_frames_are_not_judged(tiny_wan, clips):
    torch.manual_seed(0)
    discriminator, batch = AdversarialConfig().build(tiny_wan()), clips.select([0, 1])
    found = features(tiny_wan(), (0, 1), batch.latents, torch.zeros(2, 5), batch.text, None)
    assert discriminator(found, given=1).shape == (2, 2 * 4 * 6)
    assert discriminator(found).shape == (2, 2 * 5 * 6)
    with pytest.raises(WorldlineError, match="blocks 0 to 1"):
        AdversarialConfig(blocks=(5,)).build(tiny_wan())


def test_a_surrogate_has_the_value_and_gradient_of_what_it_stands_for():
    x = torch.randn(3, 4, requires_grad=True)
    value = x.detach().requires_grad_()
    loss = (value**3).sum()
    (grad,) = torch.autograd.grad(loss, value)
    stand_in = surrogate(x, grad, loss)
    assert stand_in.item() == pytest.approx(loss.item(), rel=1e-5)
    stand_in.backward()
    torch.testing.assert_close(x.grad, grad)


def test_regression_is_least_at_the_posterior_mean(gaussian):
    levels = (1.0, 0.9, 0.6)

    def loss(offset):
        net = Gaussian()
        with torch.no_grad():
            net.offset.fill_(offset)
        return torch.stack([real_regression(net, gaussian, VISIBLE, levels, Rng(0, i)) for i in range(8)]).mean()

    sigma = torch.tensor(levels[1:])
    floor = (S**2 * sigma**2 / marginal_std(sigma) ** 2).mean()  # the posterior's variance; pure noise is left out
    assert loss(0.0).item() == pytest.approx(floor.item(), rel=0.1)
    assert loss(0.3).item() == pytest.approx(floor.item() + 0.09, rel=0.1)


def test_all_terms_train_their_own_roles(tiny_wan, clips, tmp_path):
    torch.manual_seed(0)
    nets = [tiny_wan("fused") for _ in range(3)]
    method = DMDConfig(critic_updates=2, **ALL).build(*nets, PLAN, EMPTY)
    before = {r: {k: v.clone() for k, v in m.state_dict().items()} for r, m in method.roles.items()}
    config = TrainConfig(steps=2, batch_size=2, save_every=2, log_every=1, warmup=1, lr=1e-3)
    assert Trainer(method, clips, config, tmp_path / "run").fit().finished
    for role, module in method.roles.items():
        moved = any(not torch.equal(v, before[role][k]) for k, v in module.state_dict().items())
        assert moved is (role != "real"), role


def test_phases_leave_gradients_in_their_own_role(tiny_wan, clips):
    method = DMDConfig(**ALL).build(*(tiny_wan() for _ in range(3)), PLAN, EMPTY)
    for phase in method.phases:
        for net in method.roles.values():
            net.zero_grad(set_to_none=True)
        phase.loss(clips.select([0, 1]), Rng(0, 0))["loss"].backward()
        has = {r for r, net in method.roles.items() if any(p.grad is not None for p in net.parameters())}
        assert has == {phase.role}


def test_rollouts_are_shared_within_a_step(tiny_wan, clips):
    def rollouts(**options) -> list[int]:
        method, counts = DMDConfig(**options).build(*(tiny_wan() for _ in range(3)), PLAN, EMPTY), []
        rollout, made = method.rollout, []
        method.rollout = lambda *args, **kwargs: made.append(1) or rollout(*args, **kwargs)
        for step in (0, 1):
            for phase in method.phases if step == 0 else method.phases[1:]:
                phase.loss(clips.select([step]), Rng(0, step))
            method.after_step(step)
            counts.append(len(made))
            made.clear()
        return counts

    assert rollouts() == [2, 1]
    assert rollouts(share_rollout=True) == [1, 1]
    assert rollouts(gan_weight=1.0) == [2, 1], "the discriminator takes the critic's clip"
    assert rollouts(gan_weight=1.0, share_rollout=True) == [1, 1]


def test_more_draws_are_the_mean_over_noisings(tiny_wan, clips):
    nets, batch = [tiny_wan() for _ in range(3)], clips.select([0, 1])
    asked: list[torch.Tensor] = []
    nets[2].register_forward_hook(lambda m, args, out: asked.append(args[1]))
    one, three = (DMDConfig(critic_draws=n).build(*nets, PLAN, EMPTY).critic_loss(batch, Rng(0, 0)) for n in (1, 3))
    assert [len(sigma) for sigma in asked] == [2, 6]
    assert torch.equal(asked[1][:2], asked[0])
    assert len(asked[1][:, -1].unique()) == 6, "every noising has a level of its own"
    assert one["loss"] != three["loss"]


def test_what_cannot_wait_is_refused(tiny_wan, clips):
    base = add_lora(add_lora(tiny_wan(), 2, adapter="a"), 2, adapter="b")
    roles = LoRARole(base, "a"), LoRARole(base, None), LoRARole(base, "b")
    same = tiny_wan()
    for name in ("real", "fake"):
        with pytest.raises(WorldlineError, match=f"{name} shares its weights"):
            DMDConfig(offload=(name,)).build(*roles, PLAN, EMPTY)
    with pytest.raises(WorldlineError, match="real shares its weights"):
        DMDConfig(offload=("real",)).build(tiny_wan(), same, same, PLAN, EMPTY)
    nets = [tiny_wan() for _ in range(3)]
    losses = [
        DMDConfig(offload=names, **ALL).build(*nets, PLAN, EMPTY).critic_loss(clips.select([0]), Rng(0, 0))["loss"]
        for names in ((), ("real", "fake"))
    ]
    assert losses[0] == losses[1]


@pytest.mark.gpu
def test_waiting_networks_leave_the_accelerator(tiny_wan, clips):
    """The same losses and gradients, with the scores on the host while the student rolls out."""
    found = []
    for names in ((), ("real", "fake")):
        torch.manual_seed(0)
        method = DMDConfig(offload=names, **ALL).build(*(tiny_wan("fused") for _ in range(3)), PLAN, EMPTY)
        for net in method.roles.values():
            net.to("cuda")
        where: list[str] = []
        method.generator.register_forward_pre_hook(
            lambda m, args, method=method, where=where: where.append(method.real.proj_out.weight.device.type)
        )
        for phase in method.phases:
            loss = phase.loss(clips.select([0, 1]).to("cuda"), Rng(0, 0))["loss"]
            loss.backward()
            found.append([loss.detach(), *(p.grad for p in method.roles[phase.role].parameters())])
        assert set(where) == ({"cpu"} if names else {"cuda"})
    for plain, waiting in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(plain, waiting, atol=1e-6, rtol=1e-4)
