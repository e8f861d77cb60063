"""AdamW whose moments are kept in bf16: four bytes a parameter instead of eight.

bf16 has eight bits of mantissa, so that a second moment with beta 0.999 would never move if it were rounded to the nearest:
each step changes it by less than half a unit in the last place. Rounding at random, up in proportion to what would be lost,
keeps every moment right in the mean. The draws follow the step and the place in the whole tensor alone, so that a resumed run
is the same run, and one process rounds as many do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from worldline.schema import WorldlineError
from worldline.train.parallel import local

MOMENTS = ("exp_avg", "exp_avg_sq")
DEVICES = ("cpu", "cuda")  # where rounding by bits is known to be right


def random_bits(n: int, start: int, seed: int, device: torch.device) -> Tensor:
    """int32 [n]: 32 random bits for each of the numbers start ... start + n of a seed (lowbias32, Wellons 2018)."""
    x = torch.arange(n, dtype=torch.int32, device=device) + _signed(start + seed * 0x9E3779B9)  # wraps around
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x ^= (x >> shift) & ((1 << (32 - shift)) - 1)  # a logical shift: int32 would bring its sign along
        x *= _signed(factor)
    return x


def _signed(value: int) -> int:
    return ((value + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def stochastic_bf16(x: Tensor, bits: Tensor) -> Tensor:
    """fp32 -> bf16, up or down so that the mean over bits is x. bits: int32 of x's shape, of which the low 16 decide."""
    raised = (x.contiguous().view(torch.int32) + (bits & 0xFFFF)) & -(
        1 << 16
    )  # what is cut carries with the right chance
    return raised.view(torch.float32).bfloat16()


class SmallAdamW(torch.optim.Optimizer):
    """Decoupled weight decay (arXiv:1711.05101) on fp32 parameters, whole or cut by rows (FSDP2); moments in bf16."""

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
            _check(p)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; p <- (1 - lr w) p - lr m^ / (sqrt(v^) + eps)."""
        loss = None if closure is None else closure()
        for index, group in enumerate(self.param_groups):
            for number, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    for name in MOMENTS:
                        state[name] = torch.zeros_like(p.detach(), dtype=torch.bfloat16)
                state["step"] += 1
                _update(p, state, group, seed=(int(state["step"]) << 24) + (index << 20) + number)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would turn moments into the parameters' type."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in MOMENTS:
                state[name] = state[name].bfloat16()  # exact: they were bf16 before


def _update(p: Tensor, state: dict[str, Tensor], group: dict[str, Any], seed: int) -> None:
    """Of this process's part of a parameter."""
    (b1, b2), lr, t = group["betas"], group["lr"], int(state["step"])
    own, g = local(p), local(p.grad).float()  # type: ignore[arg-type]
    m = local(state["exp_avg"]).float().lerp_(g, 1 - b1)
    v = local(state["exp_avg_sq"]).float().mul_(b2).addcmul_(g, g, value=1 - b2)
    bits = random_bits(own.numel(), _first(p), seed, own.device).view(own.shape)
    local(state["exp_avg"]).copy_(stochastic_bf16(m, bits))
    local(state["exp_avg_sq"]).copy_(stochastic_bf16(v, bits >> 16))
    own.mul_(1 - lr * group["weight_decay"])
    own.addcdiv_(m, v.div_(1 - b2**t).sqrt_().add_(group["eps"]), value=-lr / (1 - b1**t))


def _first(p: Tensor) -> int:
    """Where this process's part begins in the whole tensor."""
    if not isinstance(p, DTensor):
        return 0
    axis = next((i for i, placement in enumerate(p.placements) if isinstance(placement, Shard)), None)
    if axis is None:
        return 0
    rows = -(-p.shape[0] // p.device_mesh.size(axis))
    return min(p.device_mesh.get_local_rank(axis) * rows, p.shape[0]) * (p.numel() // max(p.shape[0], 1))


def _check(p: Tensor) -> None:
    """Raises WorldlineError where moments of `p` cannot be kept so."""
    if p.dtype != torch.float32:
        raise WorldlineError(f"bf16 moments: a parameter is {p.dtype}; expected fp32 (set train.moments to fp32)")
    if p.device.type not in (*DEVICES, "meta"):
        raise WorldlineError(
            f"bf16 moments on {p.device.type}: known to round rightly on {', '.join(DEVICES)}; set train.moments to fp32"
        )
    cut = [s for s in p.placements if isinstance(s, Shard)] if isinstance(p, DTensor) else []
    if len(cut) > 1 or any(s.dim != 0 for s in cut):
        raise WorldlineError(
            f"bf16 moments: a parameter is cut as {cut}; expected by rows once (set train.moments to fp32)"
        )
