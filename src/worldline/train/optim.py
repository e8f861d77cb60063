"""AdamW with decay on matrices alone, and a learning rate that is a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from worldline.train.config import TrainConfig


def make_optimizer(module: nn.Module, lr: float, cfg: TrainConfig) -> torch.optim.AdamW:
    """Two groups: matrices with weight decay; norms, biases and other vectors without."""
    params = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=cfg.betas, fused=True)


def lr_factor(step: int, cfg: TrainConfig) -> float:
    """Share of the base learning rate at `step`."""
    warm = min(1.0, (step + 1) / max(cfg.warmup, 1))
    if cfg.schedule == "constant":
        return warm
    done = min(1.0, max(0.0, (step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1)))
    return warm * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))
