"""Noise to x0 by any plan: the solver steps and classifier-free guidance, shared by chunks and whole clips."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldline import dist
from worldline.functional.flow import velocity_to_x0
from worldline.functional.solvers import UniPC, consistency_step, euler_step
from worldline.rollout.plan import RolloutPlan

Predict = Callable[[Tensor, float], Tensor]  # (x_t, sigma) -> guided velocity


def denoise(
    plan: RolloutPlan,
    noise: Tensor,
    predict: Predict,
    *,
    generator: torch.Generator | None = None,
    exit_step: int | None = None,
    grad: bool = False,
    copies: int = 1,
) -> Tensor:
    """x0 of `noise` [B, T, C, H, W] by the plan's solver.

    exit_step=k: steps 0..k-1 run without gradient, the prediction of step k (with gradient if `grad`) is returned
    (Self-Forcing's truncated rollout). `generator` supplies the fresh noise of consistency sampling; the batch may be so many
    `copies`, one after the other, that share it.
    """
    if exit_step is not None:
        dist.agree("the exit step of a rollout", exit_step)
    levels = (*plan.sigmas, 0.0)
    last = len(plan.sigmas) - 1 if exit_step is None else exit_step
    x, unipc = noise, UniPC() if plan.solver == "unipc" else None
    # Drawn before the first call, so that nothing goes from host to device between the calls.
    draws = last if plan.solver == "consistency" else 0
    where = "cpu" if generator is None else generator.device
    shape = (len(x) // copies, *x.shape[1:])
    fresh = [
        torch.randn(shape, generator=generator, device=where).to(x).repeat(copies, 1, 1, 1, 1) for _ in range(draws)
    ]
    for j in range(last + 1):
        s, s_next = levels[j], levels[j + 1]
        with torch.set_grad_enabled(grad and j == last):
            v = predict(x, s)
            if j == last and (exit_step is not None or plan.solver == "consistency"):
                return velocity_to_x0(x, v, x.new_full(x.shape[:2], s))
            if unipc is not None:
                x = unipc.step(x, v, s, s_next)
            elif plan.solver == "euler":
                x = euler_step(x, v, s, s_next)
            else:
                x0 = velocity_to_x0(x, v, x.new_full(x.shape[:2], s))
                x = consistency_step(x0, fresh[j], s_next)
    return x
