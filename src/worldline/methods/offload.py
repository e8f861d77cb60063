"""Networks that wait in host memory until it is their turn: room on one accelerator for the network that is trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from worldline.models.lora import LoRARole
from worldline.schema import WorldlineError


def _weights(module: nn.Module) -> set[int]:
    """Identities of all weights that a network computes with; an adapter's are its base's too."""
    return {id(p) for p in (module.base if isinstance(module, LoRARole) else module).parameters()}


class Waiting:
    """Moves a network's weights off and onto a device, its parameters staying the same objects. Exact. A frozen network's
    host copy is made once, so that it only ever travels one way."""

    def __init__(self, name: str, module: nn.Module, trained: bool, others: Iterable[nn.Module]) -> None:
        """others: the method's other networks. Raises WorldlineError where one of them has the same weights."""
        self.name, self.module, self.trained = name, module, trained
        self._host: dict[str, Tensor] = {}
        own = _weights(module)
        if any(own & _weights(other) for other in others):
            raise WorldlineError(f"offload: {name} shares its weights with another network; leave it out of `offload`")

    def _tensors(self) -> dict[str, Tensor]:
        return dict([*self.module.named_parameters(), *self.module.named_buffers()])

    def away(self) -> None:
        """To the host; nothing where it is there."""
        for name, p in self._tensors().items():
            if isinstance(p, DTensor):
                raise WorldlineError(f"offload: {self.name} is sharded over devices; leave it out of `offload`")
            if p.device.type == "cpu":
                continue
            if self.trained or name not in self._host:
                held = self._host.get(name)
                held = torch.empty_like(p, device="cpu", pin_memory=p.device.type == "cuda") if held is None else held
                self._host[name] = held.copy_(p.detach())
            p.data = self._host[name]

    def back(self, device: torch.device) -> None:
        """To `device`; nothing where it is there."""
        for p in self._tensors().values():
            if p.device != device:
                p.data = p.data.to(device, non_blocking=True)
