"""Who watches a training run: called before every loss and around every update, on every process, and able to add
scalars to the log.

An observer never changes weights, gradients or randomness. All processes call their observers in the same order, so an
observer may use collectives (a sharded parameter's norm is one); only the first process writes what they return.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from worldline.methods.base import Phase
from worldline.train.ema import EMA

Scalars = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class Update:
    """One update of one role, as its phase made it."""

    step: int
    phase: str
    role: str  # the role that is trained in it
    losses: Mapping[str, Tensor]  # detached, averaged over micro batches and processes; `loss` is the one trained on
    gradient_norm: Tensor  # of the role before clipping, over all shards
    applied: bool  # False where it is not finite and therefore skipped
    lr: float
    roles: Mapping[str, nn.Module]  # every network of the method
    emas: Mapping[str, EMA]  # of the trained roles; empty where the run keeps none


class Observer(Protocol):
    """Called by the trainer around every update. What is returned is logged as `<phase>/<name>`; None adds nothing.

    Tensors may stay on the device: they are read when a line of the log is written, every `log_every` steps.
    Whatever is raised stops the run; the last checkpoint is whole.
    """

    def before_loss(self, step: int, phase: Phase, module: nn.Module, batch: Any) -> None:
        """A micro batch is about to be used by a phase, which trains `module`: the moment to hook on to its forwards."""

    def before_update(self, update: Update) -> Scalars | None:
        """Gradients (`p.grad` of update.roles[update.role]) are there, clipped; weights are the old ones."""

    def after_update(self, update: Update) -> Scalars | None:
        """Weights and averages are the new ones; gradients are still there."""

    def after_step(self, step: int) -> Scalars | None:
        """The whole step is over and `step` steps are made. What is returned is logged at once, by its own name, in a line of
        its own."""


class Silent:
    """Watches nothing: a base for observers that need some of the moments."""

    def before_loss(self, step: int, phase: Phase, module: nn.Module, batch: Any) -> None:
        """Nothing."""

    def before_update(self, update: Update) -> Scalars | None:
        """Nothing."""
        return None

    def after_update(self, update: Update) -> Scalars | None:
        """Nothing."""
        return None

    def after_step(self, step: int) -> Scalars | None:
        """Nothing."""
        return None
