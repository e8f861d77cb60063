"""A rollout as a value: who sees whom, which noise levels, which solver."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from worldline.functional.flow import few_step_sigmas, sampling_sigmas
from worldline.functional.masks import Visibility
from worldline.rollout.history import HistoryPolicy
from worldline.rollout.positions import POSITIONS, Positions
from worldline.schema import WorldlineError

Solver = Literal["consistency", "euler", "unipc"]
RAW_STEPS = {1: (1000,), 2: (1000, 500), 4: (1000, 750, 500, 250)}


@dataclass(frozen=True)
class RolloutPlan:
    """What training rollouts, AR sampling, evaluation and streaming differ in.

    sigmas: descending noise levels at which the model is called, first 1.0; the final 0 is implied.
    guidance: classifier-free scale, v = u + guidance (c - u); 1 calls the model once a step.
    positions: where sinks stand in walks longer than the training's (`rollout.positions`); horizon: for `clamp`, the latent
    frames of the longest training clip. history: recalls latent frames from beyond the window (`rollout.history`).
    """

    visibility: Visibility
    sigmas: tuple[float, ...]
    solver: Solver = "consistency"
    guidance: float = 1.0
    positions: Positions = "absolute"
    horizon: int | None = None
    history: HistoryPolicy | None = None

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS or (self.positions == "clamp") != (self.horizon is not None):
            raise WorldlineError(
                f"positions {self.positions!r} with horizon {self.horizon}: expected one of {POSITIONS}, and a horizon for "
                "'clamp' alone"
            )
        if self.history is not None and (self.visibility.window is None or self.visibility.bidirectional):
            raise WorldlineError(f"memory with {self.visibility}; expected a causal window, beyond which it remembers")
        levels = (*self.sigmas, 0.0)
        if len(levels) < 2 or any(a <= b for a, b in pairwise(levels)) or levels[0] > 1.0:
            raise WorldlineError(f"sigmas {self.sigmas}: expected descending levels in (0, 1]")

    @staticmethod
    def few_step(
        visibility: Visibility, steps: int = 4, shift: float = 5.0, history: HistoryPolicy | None = None
    ) -> RolloutPlan:
        """The few-step student: predict x0, re-noise to the next level (1, .9375, .8333, .625 for 4 steps, shift 5)."""
        if steps not in RAW_STEPS:
            raise WorldlineError(f"{steps} few-step denoising steps; expected one of {sorted(RAW_STEPS)}")
        levels = tuple(float(s) for s in few_step_sigmas(RAW_STEPS[steps], shift))
        return RolloutPlan(visibility, levels, history=history)

    @staticmethod
    def multi_step(
        visibility: Visibility,
        steps: int = 50,
        guidance: float = 3.0,
        shift: float = 5.0,
        solver: Solver = "unipc",
        history: HistoryPolicy | None = None,
    ) -> RolloutPlan:
        """The multi-step teacher on the shifted grid."""
        levels = tuple(float(s) for s in sampling_sigmas(steps, shift)[:-1])
        return RolloutPlan(visibility, levels, solver, guidance, history=history)
