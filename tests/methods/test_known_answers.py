"""Every method on a case whose answer is known in closed form.

Data: each latent entry is N(mu, s^2), independent. Then x0 given x_t is affine in x_t, the probability-flow ODE maps
x_sigma to x0 = mu + s (x_sigma - (1 - sigma) mu) / sqrt((1 - sigma)^2 s^2 + sigma^2), and scores are exact.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worldline.functional.flow import add_noise, sampling_sigmas, velocity_to_x0
from worldline.functional.losses import dmd_gradient
from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.finetune import FinetuneConfig
from worldline.methods.ode import OdeBatch, ODEConfig, solve_trajectory
from worldline.methods.teacher_forcing import TeacherForcingConfig
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, TextEmbedding

MU, S = 0.7, 0.4
VISIBLE = Visibility(chunk=1, prefix=1)


def marginal_std(sigma, s=S):
    return ((1 - sigma) ** 2 * s**2 + sigma**2).sqrt()


class Gaussian(nn.Module):
    """The exact velocity for N(mu, s^2) data, behind the interface of a backbone; `offset` shifts its x0 prediction."""

    def __init__(self, mu: float = MU, s: float = S) -> None:
        super().__init__()
        self.tokens_per_frame = lambda h, w: h * w // 4
        self.mu, self.s, self.offset = mu, s, nn.Parameter(torch.zeros(()))

    def text_context(self, text):
        return None

    def forward(self, x, sigma, text, *, cameras=None, positions=None, mask=None, cache=None):
        level = sigma[..., None, None, None]
        a = 1 - level
        x0 = self.mu + a * self.s**2 / (a**2 * self.s**2 + level**2) * (x - a * self.mu) + self.offset
        return (x - x0) / level.clamp_min(1e-6)


class Flow(Gaussian):
    """The exact consistency function of that flow: x_sigma -> the end of its trajectory; `offset` spoils it smoothly,
    vanishing at sigma 0 as the boundary condition demands."""

    def forward(self, x, sigma, text, **_):
        level = sigma[..., None, None, None]
        x0 = self.mu + self.s * (x - (1 - level) * self.mu) / marginal_std(level, self.s) + self.offset * level
        return (x - x0) / level.clamp_min(1e-6)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    text = TextEmbedding(torch.zeros(64, 2, 4), torch.ones(64, 2, dtype=torch.bool))
    return LatentBatch(MU + S * torch.randn(64, 4, 2, 4, 6, generator=g), text, None)


EMPTY = TextEmbedding(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["finetune", "teacher_forcing"])
def test_flow_matching_is_least_at_the_exact_velocity(batch, kind):
    def build(net):
        if kind == "finetune":
            return FinetuneConfig(weighting="uniform").build(net, EMPTY)
        return TeacherForcingConfig(weighting="uniform").build(net, VISIBLE, EMPTY)

    def loss(net):
        return torch.stack([build(net).loss(batch, Rng(0, step))["loss"] for step in range(8)]).mean()

    exact = Gaussian()
    value = loss(exact)
    value.backward()
    # x0 is unknown by its posterior variance s^2 sigma^2 / var_t, which in velocity is that over sigma^2.
    sigma = sampling_sigmas(4000, 5.0)[:-1]
    floor = (S**2 / marginal_std(sigma) ** 2).mean()
    assert value.item() == pytest.approx(floor.item(), rel=0.1)
    assert abs(exact.offset.grad.item()) < 0.5
    for wrong in (Gaussian(mu=MU + 0.4), Gaussian(s=2 * S)):
        assert loss(wrong) > value * 1.03


def test_teacher_trajectories_end_where_the_flow_ends(batch):
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    exact = MU + S * noise  # at sigma 1 the marginal is N(0, 1)
    errors = []
    for steps in (12, 24, 48):
        cfg = ODEConfig(euler_steps=steps, guidance=1.0)
        anchors, end = solve_trajectory(Gaussian(), batch, EMPTY, VISIBLE, cfg, noise)
        errors.append((end - exact).abs().mean().item())
    torch.testing.assert_close(anchors[:, 0], noise)
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.6)  # Euler is of first order


def _train(net, loss, steps=120, lr=0.05):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    return net.offset.item()


def test_ode_regression_learns_the_flow_map(batch):
    cfg = ODEConfig(euler_steps=96, guidance=1.0)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    anchors, end = solve_trajectory(Gaussian(), batch, EMPTY, VISIBLE, cfg, noise)
    data = OdeBatch(batch.latents, batch.text, None, anchors=anchors, end=end)
    net = Flow()
    method = cfg.build(net, VISIBLE)
    assert method.loss(data, Rng(0, 0))["loss"].item() < 1e-3
    with torch.no_grad():
        net.offset.fill_(1.0)
    assert method.loss(data, Rng(0, 0))["loss"].item() > 0.1
    assert abs(_train(net, lambda step: method.loss(data, Rng(0, step))["loss"])) < 0.05


@pytest.mark.parametrize("terminal", [True, False])
def test_consistency_loss_vanishes_at_the_flow_map(batch, terminal):
    cfg = ConsistencyConfig(grid_steps=50, guidance=1.0, include_terminal_pair=terminal)
    method = cfg.build(Flow(), Gaussian(), VISIBLE, EMPTY)
    assert method.loss(batch, Rng(0, 0))["loss"].item() < 2e-4  # one Euler step off the exact trajectory


def test_consistency_distillation_finds_the_flow_map(batch):
    net = Flow()
    method = ConsistencyConfig(grid_steps=12, guidance=1.0, target_decay=0.5).build(net, Gaussian(), VISIBLE, EMPTY)
    with torch.no_grad():
        net.offset.fill_(0.6)
        method.target.offset.fill_(0.6)

    def loss(step):
        value = method.loss(batch, Rng(0, step))["loss"]
        method.after_step(step)
        return value

    assert abs(_train(net, loss, steps=300)) < 0.12  # what is left is the Euler error of twelve steps


def test_terminal_pair_is_there_by_default_and_absent_by_flag(batch):
    for terminal in (True, False):
        method = ConsistencyConfig(grid_steps=4, guidance=1.0, include_terminal_pair=terminal).build(
            Flow(), Gaussian(), VISIBLE, EMPTY
        )
        asked: list[float] = []
        method.target.register_forward_hook(lambda m, args, out, asked=asked: asked.append(float(args[1][:, -1].min())))
        for step in range(6):
            method.loss(batch, Rng(0, step))
        assert (min(asked) == 0) is terminal


def test_dmd_gradient_is_the_difference_of_gaussian_scores():
    mu_r, s_r, mu_f, s_f, level = 0.5, 0.6, -0.2, 0.9, 0.7
    x = torch.randn(3, 2, 2, 4, 6)
    sigma = torch.full((3, 2), level)
    x_t = add_noise(x, torch.randn(x.shape), sigma)
    real = velocity_to_x0(x_t, Gaussian(mu_r, s_r)(x_t, sigma, None), sigma)
    fake = velocity_to_x0(x_t, Gaussian(mu_f, s_f)(x_t, sigma, None), sigma)
    a = 1 - level

    def score(mu, s):
        return -(x_t - a * mu) / (a**2 * s**2 + level**2)

    expected = (score(mu_f, s_f) - score(mu_r, s_r)) * level**2 / a  # x0 = (x_t + sigma^2 score) / alpha
    torch.testing.assert_close(dmd_gradient(fake, real, x, "none"), expected, atol=1e-4, rtol=1e-4)
    per_sample = expected / (x - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(dmd_gradient(fake, real, x, "per_sample"), per_sample, atol=1e-4, rtol=1e-4)


def test_dmd_moves_the_student_to_the_teachers_distribution(tiny_wan, batch):
    """A student whose only freedom is a shift: with an exact critic it must end at the teacher's mean."""

    class Shifted(nn.Module):
        """Generates N(offset, S^2) whatever it is given."""

        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.tensor(-1.0))

        def text_context(self, text):
            return None

        def forward(self, x, sigma, text, *, cameras=None, positions=None, mask=None, cache=None):
            return x - (self.offset + S * x)  # at sigma 1: x0 = offset + S noise

    student, critic = Shifted(), Gaussian()
    plan = RolloutPlan(Visibility(chunk=1, prefix=1), (1.0,))
    method = DMDConfig(guidance=1.0).build(student, Gaussian(), critic, plan, EMPTY)
    optimizer = torch.optim.Adam(student.parameters(), 0.05)
    for step in range(150):
        critic.mu = student.offset.item()
        optimizer.zero_grad()
        method.generator_loss(batch, Rng(0, step))["loss"].backward()
        optimizer.step()
    assert student.offset.item() == pytest.approx(MU, abs=0.1)
