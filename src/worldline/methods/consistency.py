"""Causal consistency distillation: neighbours on the teacher's ODE must map to the same x0 (CM, arXiv:2303.01469).

Student at s_k against an EMA target at s_{k+1}, one guided teacher step apart, under teacher forcing (minWM stage 2b).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.functional.averages import check_precision
from worldline.functional.flow import add_noise, sampling_sigmas, velocity_to_x0
from worldline.functional.losses import regression_loss
from worldline.functional.masks import Visibility
from worldline.functional.solvers import euler_step
from worldline.methods.base import Phase, Rng
from worldline.methods.guided import guided_teacher_velocity
from worldline.models.backbone import Backbone
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import LatentBatch, TextEmbedding


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Discrete causal consistency distillation."""

    grid_steps: int = 50  # N: levels s_k = shift(1 - k / N), k = 0..N
    shift: float = 5.0
    guidance: float = 3.0  # classifier-free scale of the teacher's step
    target_decay: float = 0.99  # EMA of the target network
    include_terminal_pair: bool = True  # also train the pair that ends at sigma 0 (legacy recipes leave it out)
    grid_dtype: str = "fp32"  # "bf16" reproduces legacy grids: levels rounded on the 1000-step clock

    def build(
        self, model: Backbone, teacher: Backbone, visibility: Visibility, empty: TextEmbedding
    ) -> ConsistencyDistillation:
        """model starts as the student (and as its target); teacher is the frozen multi-step AR model. Raises WorldlineError
        where the target's weights are too coarse to follow."""
        return ConsistencyDistillation(self, model, teacher, visibility, empty)


class ConsistencyDistillation:
    """Student, frozen teacher, and a target that follows the student."""

    moving_roles = ("target",)

    def __init__(
        self, cfg: ConsistencyConfig, model: Backbone, teacher: Backbone, visibility: Visibility, empty: TextEmbedding
    ) -> None:
        self.cfg, self.model, self.teacher, self.visibility, self.empty = cfg, model, teacher, visibility, empty
        self.target = copy.deepcopy(model)
        check_precision(self.target.parameters(), cfg.target_decay, "the consistency target")
        self.roles = {"model": model, "teacher": teacher, "target": self.target}
        self.phases = (Phase("consistency", "model", self.loss),)
        grid = sampling_sigmas(cfg.grid_steps, cfg.shift)
        self.grid = grid if cfg.grid_dtype == "fp32" else (1000 * grid).bfloat16().float() / 1000

    def predict_x0(self, net: Backbone, batch: LatentBatch, x: Tensor, sigma: Tensor) -> Tensor:
        """Teacher-forced x0 of `net` at x."""
        context = net.text_context(batch.text)
        v = teacher_forced_velocity(
            net, batch.latents, x, sigma, context, cameras=batch.cameras, visibility=self.visibility
        )
        return velocity_to_x0(x, v, sigma)

    def loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """mean (x0_student(x_k, s_k) - sg x0_target(x_{k+1}, s_{k+1}))^2 over generated frames; k is drawn a sample."""
        x0, cfg, given = batch.latents, self.cfg, self.visibility.prefix
        B, T = x0.shape[:2]
        pairs = cfg.grid_steps if cfg.include_terminal_pair else cfg.grid_steps - 1
        k = torch.randint(pairs, (B,), generator=rng.generator("pair"))
        s, s_next = (self.grid[i][:, None].expand(B, T).to(x0.device) for i in (k, k + 1))
        x = add_noise(x0, rng.randn_like(x0, "noise"), s)
        with torch.no_grad():
            v = guided_teacher_velocity(
                self.teacher, x0, x, s, batch.text, self.empty, batch.cameras, self.visibility, cfg.guidance
            )
            x_next = euler_step(x, v, s[..., None, None, None], s_next[..., None, None, None])
            target = self.predict_x0(self.target, batch, x_next, s_next)  # at s_next = 0 this is x_next itself
        pred = self.predict_x0(self.model, batch, x, s)
        return {"loss": regression_loss(pred[:, given:], target[:, given:])}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """target <- decay target + (1 - decay) student."""
        live = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_([p.data for p in self.target.parameters()], live, 1 - self.cfg.target_decay)
