"""Solvers against diffusers and against an exact flow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from worldline.functional.flow import sampling_sigmas
from worldline.functional.solvers import UniPC, consistency_step, euler_step

MU, S = 0.3, 0.5


def velocity(x: torch.Tensor, s: float) -> torch.Tensor:
    """Exact velocity for N(MU, S^2) data."""
    a = 1 - s
    x0 = MU + a * S**2 / (a**2 * S**2 + s**2) * (x - a * MU)
    return (x - x0) / max(s, 1e-9)


def solve(steps: int, solver: str) -> torch.Tensor:
    grid = sampling_sigmas(steps).double().tolist()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    unipc = UniPC()
    for s, s_next in pairwise(grid):
        v = velocity(x, s)
        x = unipc.step(x, v, s, s_next) if solver == "unipc" else euler_step(x, v, s, s_next)
    return x


def test_solvers_find_the_end_of_an_exact_flow():
    exact = MU + S * torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = {name: [(solve(n, name) - exact).abs().max().item() for n in (25, 50)] for name in ("euler", "unipc")}
    assert errors["euler"][1] < 0.6 * errors["euler"][0]
    assert errors["unipc"][1] < errors["euler"][1] / 3


def test_unipc_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, solver_order=2
    )
    scheduler.set_timesteps(12)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs, ours, unipc = x.clone(), x.clone(), UniPC()
    sigmas = scheduler.sigmas.double().tolist()
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(velocity(theirs, sigmas[i]), t, theirs).prev_sample
        ours = unipc.step(ours, velocity(ours, sigmas[i]), sigmas[i], sigmas[i + 1])
        torch.testing.assert_close(ours, theirs.double(), atol=1e-4, rtol=1e-4)


def test_consistency_step_renoises():
    x0, eps = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(consistency_step(x0, eps, 0.25), 0.75 * x0 + 0.25 * eps)
