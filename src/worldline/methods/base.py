"""What a training method is: named networks, and phases that each train one of them.

A method turns predictions into losses; the trainer owns backward, clipping, optimizer, EMA and time. All randomness comes
from counters, so that a resumed run is the same run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rng:
    """Counter-based randomness: a generator for every named stream of (seed, step, rank, micro batch)."""

    seed: int
    step: int
    rank: int = 0
    micro: int = 0

    def generator(self, stream: str) -> torch.Generator:
        """A CPU generator; the same counters and stream give the same draws on any machine."""
        digest = hashlib.sha256(f"{self.seed}/{stream}/{self.step}/{self.rank}/{self.micro}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def shared(self, stream: str) -> torch.Generator:
        """The same for every process and micro batch of a step: for what decides how many forwards there are."""
        return Rng(self.seed, self.step).generator(stream)

    def randn_like(self, x: Tensor, stream: str) -> Tensor:
        """Standard normal noise of x's shape, drawn on the CPU and moved."""
        return torch.randn(x.shape, generator=self.generator(stream)).to(x.device)


def added(default: Any) -> Any:
    """A config field that finished runs did not have: at its default it is no part of a stage's hash."""
    return field(default=default, metadata={"added": True})


LossFn = Callable[[Any, Rng], dict[str, Tensor]]


@dataclass(frozen=True)
class Phase:
    """One kind of update. loss(batch, rng) returns `loss` (backpropagated) and detached scalars to log."""

    name: str
    role: str  # the one network this phase trains
    loss: LossFn
    every: int = 1  # runs on steps divisible by this


class Method(Protocol):
    """A training method. `roles` holds every network by name; only those named by a phase are trained."""

    @property
    def roles(self) -> Mapping[str, nn.Module]: ...

    @property
    def phases(self) -> tuple[Phase, ...]: ...

    def after_step(self, step: int) -> None:
        """Called once a step, after all its phases (moving targets follow their live network here)."""
