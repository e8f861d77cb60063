"""How long, how fast, how safely: everything about a training run that is not its method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from worldline.schema import WorldlineError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run; the trainer reads nothing else."""

    steps: int = 1000  # optimizer steps (of the phase that runs every step)
    batch_size: int = 16  # samples a micro batch
    accumulation: int = 1  # micro batches an optimizer step, over all processes: their number changes no result
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices inside blocks; the rest stays with adamw
    moments: Literal["fp32", "bf16"] = "fp32"  # AdamW's; bf16 (rounded at random) takes half their memory
    lr: float = 3e-4
    role_lr: dict[str, float] = field(default_factory=dict)  # learning rate of a role where it differs
    warmup: int = 50  # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "cosine"  # after warm-up; cosine falls to `final_lr` of the rate
    final_lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01  # of matrices; vectors have none
    clip: float = 1.0  # largest gradient norm of a role
    ema_decay: float = 0.999  # of every trained role; 0 keeps none. Young averages use (1 + n) / (10 + n)
    precision: Literal["bf16", "fp32"] = "bf16"  # compute type over fp32 master weights
    sharding: Literal["auto", "full", "replicate"] = (
        "auto"  # of a role's weights over processes; auto: full where it can be
    )
    keep_gathered: bool = (
        False  # leave sharded weights gathered between forwards: fewer collectives in rollouts, more memory
    )
    sequence_parallel: int = (
        1  # processes that share the tokens of each sample (Ulysses); divides heads and tokens a frame
    )
    compile: bool = False  # compile every transformer block (for accelerators)
    recompute: bool = False  # keep block inputs alone for backward: a third more operations, far less memory
    seed: int = 0
    save_every: int = 500  # steps between checkpoints
    save_minutes: float = 5.0  # or minutes, whichever comes first
    keep: int = 2  # checkpoints kept
    keep_best: str = ""  # and the one where this logged value was lowest, such as "flow/loss"
    async_checkpoints: bool = (
        False  # several processes: write while training goes on, for a copy of the states in host memory
    )
    log_every: int = 20
    max_nonfinite: int = 5  # skipped updates in a row before the run stops
    threads: int | None = None  # torch threads; null leaves them alone

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.accumulation, self.keep, self.log_every, self.save_every) < 1:
            raise WorldlineError(f"{self}: expected steps, batch_size, accumulation, keep, log_every, save_every >= 1")
        if self.sharding == "full" and self.optimizer == "muon":
            raise WorldlineError(
                "optimizer muon needs whole matrices, sharding full cuts them; set sharding to auto (which replicates what "
                "muon trains), or the optimizer to adamw"
            )
        if self.moments == "bf16" and self.optimizer == "muon":
            raise WorldlineError(
                "moments bf16 are of optimizer adamw; expected optimizer adamw or moments fp32, not muon"
            )
        if not 0 <= self.ema_decay < 1:
            raise WorldlineError(f"ema_decay is {self.ema_decay}; expected 0 <= ema_decay < 1")
