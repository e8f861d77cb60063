"""AdamW, or Muon for the matrices of the blocks beside AdamW for the rest; the learning rate is a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from worldline.train.config import TrainConfig
from worldline.train.optimizers import SmallAdamW


class Optimizers:
    """Several optimizers that step as one: the part of `torch.optim.Optimizer` that training uses."""

    def __init__(self, parts: dict[str, torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self) -> None:
        """One update of every part."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """States by part."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def make_optimizer(module: nn.Module, lr: float, cfg: TrainConfig) -> Optimizers:
    """Weight decay on matrices, none on norms, biases and other vectors.

    `muon` (Jordan 2024, with the update scaled to AdamW's usual size as in Liu et al. 2025, so that one learning rate fits
    both) takes the matrices inside blocks; embeddings, the head and vectors stay with AdamW.
    """
    inner: list[Tensor] = []
    rest: list[Tensor] = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            (inner if cfg.optimizer == "muon" and p.ndim == 2 and "blocks." in name else rest).append(p)
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    parts: dict[str, torch.optim.Optimizer] = {}
    if groups := [g for g in groups if g["params"]]:
        parts["adamw"] = (
            SmallAdamW(groups, lr=lr, betas=cfg.betas)
            if cfg.moments == "bf16"
            else torch.optim.AdamW(groups, lr=lr, betas=cfg.betas, fused=True)
        )
    if inner:
        parts["muon"] = _muon(inner, lr, cfg.weight_decay)
    return Optimizers(parts)


def _muon(matrices: list[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")


def lr_factor(step: int, cfg: TrainConfig) -> float:
    """Share of the base learning rate at `step`."""
    warm = min(1.0, (step + 1) / max(cfg.warmup, 1))
    if cfg.schedule == "constant":
        return warm
    done = min(1.0, max(0.0, (step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1)))
    return warm * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))
