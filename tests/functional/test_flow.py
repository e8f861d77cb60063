"""Schedules and weights against published values; conversions against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldline.functional.flow import (
    add_noise,
    cfg,
    few_step_sigmas,
    gaussian_time_weight,
    sampling_sigmas,
    shift,
    training_sigmas,
    velocity,
    velocity_to_x0,
    x0_to_velocity,
)
from worldline.functional.losses import dmd_gradient, dmd_surrogate, flow_matching_loss


def test_training_table_has_the_published_levels():
    s = training_sigmas(1000, 5.0)
    for i, value in {
        0: 1.0,
        100: 0.97826,
        250: 0.9375,
        500: 0.8333333,
        750: 0.625,
        900: 0.35714,
        999: 0.0049801,
    }.items():
        assert s[i].item() == pytest.approx(value, abs=1e-5)


def test_few_step_levels_lie_on_the_48_step_grid():
    four = few_step_sigmas()
    assert (1000 * four).tolist() == pytest.approx([1000, 937.5, 833.3333, 625], abs=1e-3)
    assert (1000 * few_step_sigmas((1000, 500))).tolist() == pytest.approx([1000, 833.3333], abs=1e-3)
    grid = sampling_sigmas(48)
    torch.testing.assert_close(grid[[0, 12, 24, 36]], four)
    assert 1000 * grid[47].item() == pytest.approx(96.1538, abs=1e-3)
    fifty = 1000 * sampling_sigmas(50)
    assert fifty[[1, 25, 49]].tolist() == pytest.approx([995.935, 833.333, 92.5926], abs=1e-2)
    assert fifty[50] == 0


def test_time_weight_is_wans():
    w = gaussian_time_weight()
    assert w.mean().item() == pytest.approx(1, abs=1e-5)
    values = {0: 0, 100: 0.139, 250: 0.398, 500: 1.025, 750: 1.914, 833: 2.076, 900: 1.865, 950: 1.251, 999: 0.032}
    for i, value in values.items():
        assert w[i].item() == pytest.approx(value, abs=2e-3)


def test_score_levels_are_clamped_as_often_as_published():
    t = (1000 * shift(torch.arange(1000) / 1000, 5.0)).clamp(20, 980)
    assert (t == 20).float().mean().item() == pytest.approx(0.005, abs=2e-3)
    assert (t == 980).float().mean().item() == pytest.approx(0.092, abs=2e-3)
    assert t.median().item() == pytest.approx(832.8, abs=1)


@given(st.floats(0.01, 1.0), st.floats(0.5, 12.0))
def test_shift_keeps_the_ends_and_inverts(sigma, k):
    s = torch.tensor(sigma, dtype=torch.float64)
    assert shift(shift(s, k), 1 / k).item() == pytest.approx(sigma, rel=1e-9)
    assert shift(torch.tensor(1.0), k).item() == pytest.approx(1)
    assert shift(torch.tensor(0.0), k).item() == 0


def test_conversions_agree():
    x0, eps, sigma = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2), torch.rand(2, 3) * 0.9 + 0.1
    x_t, v = add_noise(x0, eps, sigma), velocity(x0, eps)
    torch.testing.assert_close(velocity_to_x0(x_t, v, sigma), x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x0_to_velocity(x_t, x0, sigma), v, atol=1e-4, rtol=1e-4)


def test_guidance_of_either_convention():
    c, u = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(cfg(u, c, 4.0), c + 3 * (c - u))
    torch.testing.assert_close(cfg(u, c, 1.0), c)


def test_dmd_gradient_and_its_surrogate():
    x = torch.randn(2, 2, 3, 2, 2, requires_grad=True)
    fake, real = torch.randn(2, 2, 3, 2, 2), torch.randn(2, 2, 3, 2, 2)
    g = dmd_gradient(fake, real, x.detach())
    for b in range(2):
        torch.testing.assert_close(g[b], (fake[b] - real[b]) / (x[b].detach() - real[b]).abs().mean())
    whole = dmd_gradient(fake, real, x.detach(), "global")
    torch.testing.assert_close(whole, (fake - real) / (x.detach() - real).abs().mean())
    dmd_surrogate(x, g).backward()
    torch.testing.assert_close(x.grad, g / x.numel(), atol=1e-7, rtol=1e-4)
    same = dmd_gradient(fake, x.detach(), x.detach())  # a perfect student divides by nothing
    assert torch.isfinite(same).all()


def test_frame_weights_leave_frames_out():
    pred, target = torch.randn(1, 2, 3, 2, 2), torch.randn(1, 2, 3, 2, 2)
    loss = flow_matching_loss(pred, target, torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(loss, (pred[:, 1] - target[:, 1]).square().mean())


def test_critic_by_x0_equals_critic_by_velocity():
    x0, eps, sigma = (torch.randn(2, 3, 4, 2, 2, dtype=torch.float64) for _ in range(3))
    sigma = torch.rand(2, 3, dtype=torch.float64) * 0.9 + 0.05
    x_t, v_hat = add_noise(x0, eps, sigma), torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    back = x0_to_velocity(x_t, velocity_to_x0(x_t, v_hat, sigma), sigma)
    torch.testing.assert_close(back, v_hat, atol=1e-12, rtol=1e-9)
