"""AdamW whose moments are kept in bf16: four bytes a parameter instead of eight.

bf16 has eight bits of mantissa, so that a second moment with beta 0.999 would never move if it were rounded to the nearest:
each step changes it by less than half a unit in the last place. Rounding at random, up in proportion to what would be lost,
keeps every moment right in the mean. The draws follow the step alone, so that a resumed run is the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from worldline.schema import WorldlineError


def stochastic_bf16(x: Tensor, rng: torch.Generator) -> Tensor:
    """fp32 -> bf16, up or down at random so that the mean is x; rng is on x's device."""
    noise = torch.randint(1 << 16, x.shape, generator=rng, device=x.device, dtype=torch.int32)
    bits = (x.contiguous().view(torch.int32) + noise) & -(1 << 16)  # adding below the cut carries with the right chance
    return bits.view(torch.float32).bfloat16()


class SmallAdamW(torch.optim.Optimizer):
    """Decoupled weight decay (arXiv:1711.05101) on fp32 parameters, moments in bf16. Of whole tensors, not of shards."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.dtype != torch.float32 or type(p.data) is not Tensor:
                raise WorldlineError(
                    f"bf16 moments: a parameter is {type(p.data).__name__} of {p.dtype}; expected whole fp32 tensors "
                    "(take the optimizer adamw for sharded or bf16 weights)"
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; p <- (1 - lr w) p - lr m^ / (sqrt(v^) + eps)."""
        loss = None if closure is None else closure()
        for index, group in enumerate(self.param_groups):
            (b1, b2), lr = group["betas"], group["lr"]
            for number, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                state, g = self.state[p], p.grad.float()
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = (
                        torch.zeros_like(p, dtype=torch.bfloat16) for _ in range(2)
                    )
                state["step"] += 1
                t = int(state["step"])
                seed = (t << 24) + (index << 20) + number
                rng = torch.Generator(p.device).manual_seed(seed)
                m = state["exp_avg"].float().lerp_(g, 1 - b1)
                v = state["exp_avg_sq"].float().mul_(b2).addcmul_(g, g, value=1 - b2)
                state["exp_avg"].copy_(stochastic_bf16(m, rng))
                state["exp_avg_sq"].copy_(stochastic_bf16(v, rng))
                p.mul_(1 - lr * group["weight_decay"])
                p.addcdiv_(m, (v / (1 - b2**t)).sqrt_().add_(group["eps"]), value=-lr / (1 - b1**t))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would turn moments into the parameters' type."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].bfloat16()  # exact: they were bf16 before
