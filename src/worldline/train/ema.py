"""Exponential moving average of weights, in fp32 shadows, sharded as the weights are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldline.functional.averages import check_precision
from worldline.train.parallel import fill, local


class EMA:
    """shadow <- decay shadow + (1 - decay) weights, with decay min(decay, (1 + n) / (10 + n)) while young."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {k: v.detach().clone().float() for k, v in module.named_parameters() if v.requires_grad}
        check_precision(self.shadow.values(), decay, "EMA")

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [local(v.detach()).float() for k, v in module.named_parameters() if k in self.shadow]
        torch._foreach_lerp_([local(v) for v in self.shadow.values()], live, 1 - decay)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return self.shadow

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Restore from a checkpoint."""
        for k, v in self.shadow.items():
            fill(v, state[k])
        self.updates = updates
