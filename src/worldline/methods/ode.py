"""Causal ODE distillation: the AR teacher's own trajectories, then regression from a few anchors to their ends.

The teacher solves its probability-flow ODE under teacher forcing (every frame at the same level, the true past as context);
the student learns to jump from each few-step level straight to the end (CausVid, arXiv:2412.07772; minWM stage 2a).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from worldline import dist
from worldline.functional.flow import few_step_sigmas, sampling_sigmas, velocity_to_x0
from worldline.functional.losses import regression_loss
from worldline.functional.masks import Visibility
from worldline.functional.solvers import euler_step
from worldline.methods.base import Phase, Rng
from worldline.methods.guided import guided_teacher_velocity
from worldline.models.backbone import Backbone
from worldline.rollout.plan import RAW_STEPS
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import LatentBatch, TextEmbedding, WorldlineError


@dataclass(frozen=True, kw_only=True)
class ODEConfig:
    """Trajectories and the regression on them."""

    steps: int = 4  # few-step levels: the anchors
    shift: float = 5.0
    euler_steps: int = 48  # of a trajectory; a multiple of `steps`, so that anchors lie on the grid
    guidance: float = 3.0  # classifier-free scale of the teacher
    clips: int = 1024  # trajectories generated before training
    clips_per_batch: int = 16  # trajectories solved together

    def __post_init__(self) -> None:
        if self.steps not in RAW_STEPS or self.euler_steps % self.steps:
            raise WorldlineError(
                f"{self.euler_steps} Euler steps with {self.steps} anchors: expected steps in {sorted(RAW_STEPS)} and a "
                f"multiple of it, e.g. {self.steps * max(1, self.euler_steps // self.steps)}"
            )

    def build(self, model: Backbone, visibility: Visibility) -> OdeRegression:
        """The student's regression on generated trajectories."""
        return OdeRegression(self, model, visibility)


@dataclass(frozen=True)
class OdeBatch(LatentBatch):
    """Clips with their trajectories. anchors: [B, S, T, C, H, W] at the few-step levels; end: [B, T, C, H, W]."""

    anchors: Tensor = field(kw_only=True)
    end: Tensor = field(kw_only=True)


class Clips(Protocol):
    """Encoded clips by index."""

    def __len__(self) -> int: ...

    def select(self, index: list[int]) -> LatentBatch: ...


@torch.no_grad()
def solve_trajectory(
    teacher: Backbone, batch: LatentBatch, empty: TextEmbedding, visibility: Visibility, cfg: ODEConfig, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Euler from `noise` [B, T, C, H, W] at sigma 1 to 0 -> (anchors [B, S, T, C, H, W], end [B, T, C, H, W])."""
    grid = sampling_sigmas(cfg.euler_steps, cfg.shift).tolist()
    x, anchors, stride = noise, [], cfg.euler_steps // cfg.steps
    for k in range(cfg.euler_steps):
        if k % stride == 0:
            anchors.append(x)
        sigma = x.new_full(x.shape[:2], grid[k])
        v = guided_teacher_velocity(
            teacher, batch.latents, x, sigma, batch.text, empty, batch.cameras, visibility, cfg.guidance
        )
        x = euler_step(x, v, grid[k], grid[k + 1])
    return torch.stack(anchors, dim=1), x


def generate_trajectories(
    teacher: Backbone,
    data: Clips,
    empty: TextEmbedding,
    visibility: Visibility,
    cfg: ODEConfig,
    out: str | Path,
    *,
    seed: int = 0,
    autocast: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write trajectories of the first `cfg.clips` clips as shards (fp16) under `out`; finished shards are kept. Several
    processes, each with the teacher whole, share what is left: all must call it, and a shard is the same whoever solves it.
    progress: this process's clips, and how many it has."""
    from safetensors.torch import save_file

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    total = min(cfg.clips, len(data))
    device = next(teacher.parameters()).device
    teacher.eval()
    shards = {start: out / f"trajectories-{start:06d}.safetensors" for start in range(0, total, cfg.clips_per_batch)}
    # Rank 0 says what is left, so that no process leaves out what another is about to write.
    own = dist.own_share([start for start, path in shards.items() if not path.exists()])
    sizes = [min(cfg.clips_per_batch, total - start) for start in own]

    def solve() -> None:
        for done, start in enumerate(own, start=1):
            path, index = shards[start], list(range(start, min(start + cfg.clips_per_batch, total)))
            batch = data.select(index).to(device)
            noise = Rng(seed, start).randn_like(batch.latents, "trajectory")
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                anchors, end = solve_trajectory(teacher, batch, empty.to(device), visibility, cfg, noise)
            if not torch.isfinite(end).all():
                raise WorldlineError(
                    f"the teacher's trajectories of clips {start}.. are non-finite; train it longer or cooler"
                )
            arrays = {"index": torch.tensor(index), "anchors": anchors.half().cpu(), "end": end.half().cpu()}
            save_file(arrays, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
            if progress is not None:
                progress(sum(sizes[:done]), sum(sizes))

    dist.everywhere(solve)
    return out


class OdeTrajectories:
    """Trajectories on disk, joined with their clips; batches by counter."""

    def __init__(self, root: str | Path, clips: Clips) -> None:
        from safetensors.torch import load_file

        shards = [load_file(p) for p in sorted(Path(root).glob("trajectories-*.safetensors"))]
        if not shards:
            raise WorldlineError(f"{root} holds no trajectories; run the ode stage from its start")
        self.clips = clips
        self.index, self.anchors, self.end = (torch.cat([s[k] for s in shards]) for k in ("index", "anchors", "end"))

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> OdeBatch:
        """Batch `step` of a seed, drawn with replacement."""
        digest = hashlib.sha256(f"trajectories {seed} {step}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        rows = torch.randint(len(self), (batch_size,), generator=rng)
        clips = self.clips.select(self.index[rows].tolist()).to(device)
        anchors, end = self.anchors[rows].float().to(device), self.end[rows].float().to(device)
        return OdeBatch(clips.latents, clips.text, clips.cameras, clips.ids, anchors=anchors, end=end)


class OdeRegression:
    """One network, one phase: x0_student(anchor) -> the end of the teacher's trajectory, with the true past as context."""

    def __init__(self, cfg: ODEConfig, model: Backbone, visibility: Visibility) -> None:
        self.cfg, self.model, self.visibility = cfg, model, visibility
        self.levels = few_step_sigmas(RAW_STEPS[cfg.steps], cfg.shift)
        self.roles = {"model": model}
        self.phases = (Phase("ode", "model", self.loss),)

    def loss(self, batch: OdeBatch, rng: Rng) -> dict[str, Tensor]:
        """mean (x0_hat - end)^2 over generated frames, one anchor a sample."""
        B, T = batch.latents.shape[:2]
        anchor = torch.randint(self.cfg.steps, (B,), generator=rng.generator("anchor"))
        x = batch.anchors[torch.arange(B), anchor.to(batch.anchors.device)]
        sigma = self.levels[anchor][:, None].expand(B, T).to(x.device)
        context, given = self.model.text_context(batch.text), self.visibility.prefix
        v = teacher_forced_velocity(
            self.model, batch.latents, x, sigma, context, cameras=batch.cameras, visibility=self.visibility
        )
        x0 = velocity_to_x0(x, v, sigma)
        return {"loss": regression_loss(x0[:, given:], batch.end[:, given:])}

    def after_step(self, step: int) -> None:
        """Nothing moves beside the model."""
