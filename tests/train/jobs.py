"""What the processes of these tests do: train tiny real methods and hand back losses, gradients, weights."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.conftest import random_cameras, randomise
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from worldline import dist
from worldline.functional.masks import Visibility
from worldline.methods.adversarial import AdversarialConfig
from worldline.methods.base import Method
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.diffusion_forcing import DiffusionForcingConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.finetune import FinetuneConfig
from worldline.methods.ode import OdeBatch, ODEConfig
from worldline.methods.teacher_forcing import TeacherForcingConfig
from worldline.models.hunyuan15 import HunyuanConfig, HunyuanModel
from worldline.models.lora import AdaptedLinear, LoRARole, add_lora
from worldline.models.wan import Block, WanConfig, WanModel
from worldline.rollout.plan import RolloutPlan
from worldline.schema import TextEmbedding
from worldline.train.config import TrainConfig
from worldline.train.log import read_log
from worldline.train.loop import Trainer
from worldline.train.observers import Silent, Update
from worldline.train.parallel import LayoutConfig, whole

# Every method, and every term and saving that distribution matching can have.
DMD = {
    "dmd": {},
    "dmd by chunks": {"chunkwise_backward": True},
    "dmd with regression": {"regression_weight": 0.5},
    "dmd with gan": {"gan_weight": 0.5, "gan": AdversarialConfig(width=8)},
    "dmd with everything": {
        "gan_weight": 0.5,
        "gan": AdversarialConfig(width=8),
        "regression_weight": 0.5,
        "chunkwise_backward": True,
        "critic_draws": 2,
        "share_rollout": True,
    },
}
KINDS = ("finetune", "teacher_forcing", "diffusion_forcing", "ode", "consistency", *DMD)
VISIBLE = Visibility(chunk=1, prefix=1, window=2, sink=1)  # the last frame sees past the frame after the first
EMPTY = TextEmbedding(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")


def wan(camera: str = "fused", seed: int = 0, **changes: Any) -> WanModel:
    sizes = dict(dim=32, ffn_dim=48, num_heads=4, num_layers=2, text_dim=8, text_len=6, in_channels=4, out_channels=4)
    model = WanModel(WanConfig(**{**sizes, "freq_dim": 16, "camera": camera, **changes}))
    randomise(model, seed)
    return model


def hunyuan(camera: str = "fused", seed: int = 0, **changes: Any) -> HunyuanModel:
    """Of decoupled prompts, which it makes in blocks of their own stream."""
    sizes = dict(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_lens=(6, 0, 0), rope_dims=(4, 6, 6))
    sizes |= dict(
        in_channels=4, out_channels=4, freq_dim=16, refiner_layers=1, refiner_ffn_dim=48, patch_size=(1, 2, 2)
    )
    model = HunyuanModel(HunyuanConfig(**{**sizes, "camera": camera, "text_mode": "decoupled", **changes}))
    randomise(model, seed)
    return model


class Clips:
    """Random clips of 4 latents of 8 tokens, batches by counter."""

    def batch(self, seed: int, step: int, batch_size: int, device: Any = "cpu") -> OdeBatch:
        clips = [self._clip(seed * 1000 + step * batch_size + i) for i in range(batch_size)]
        latents, tokens, anchors, end = (torch.stack(parts) for parts in zip(*clips, strict=True))
        text = TextEmbedding(tokens, torch.ones(batch_size, 6, dtype=torch.bool), "random")
        views = random_cameras(batch_size, 4, seed)
        return OdeBatch(latents, text, views, anchors=anchors, end=end)

    def _clip(self, number: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(number)
        shapes = (4, 4, 4, 8), (6, 8), (4, 4, 4, 4, 8), (4, 4, 4, 8)
        return tuple(torch.randn(shape, generator=g) for shape in shapes)


def method(kind: str, camera: str = "fused", heads: int | None = None, backbone: str = "wan") -> Method:
    sizes = {} if heads is None else {"num_heads": heads}
    nets = [{"wan": wan, "hunyuan": hunyuan}[backbone](camera, seed, **sizes) for seed in range(3)]
    if kind == "dmd by adapters":
        for name in ("student", "critic"):
            add_lora(nets[0], 2, targets="attention", adapter=name)
        for seed, adapted in enumerate((m for m in nets[0].modules() if isinstance(m, AdaptedLinear)), start=7):
            randomise(adapted, seed)
        roles = [LoRARole(nets[0], name) for name in ("student", None, "critic")]
        return DMDConfig(critic_updates=2).build(*roles, RolloutPlan.few_step(VISIBLE), EMPTY)
    if kind == "finetune":
        return FinetuneConfig().build(nets[0], EMPTY)
    if kind == "teacher_forcing":
        return TeacherForcingConfig(context_noise=0.1).build(nets[0], VISIBLE, EMPTY)
    if kind == "diffusion_forcing":
        return DiffusionForcingConfig(clean_past=0.5).build(nets[0], VISIBLE, EMPTY)
    if kind == "ode":
        return ODEConfig(euler_steps=4).build(nets[0], VISIBLE)
    if kind == "consistency":
        return ConsistencyConfig(grid_steps=8).build(nets[0], nets[1], VISIBLE, EMPTY)
    torch.manual_seed(5)  # a discriminator's weights
    return DMDConfig(critic_updates=2, **DMD[kind]).build(*nets, RolloutPlan.few_step(VISIBLE), EMPTY)


class Gathers(TorchDispatchMode):
    """Counts the collectives that gather sharded weights."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "allgather_base" in str(func)
        return func(*args, **(kwargs or {}))


class Gradients(Silent):
    """Keeps the whole gradients of every update."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Tensor]] = {}

    def before_update(self, update: Update) -> None:
        own = update.roles[update.role].named_parameters()
        kept = {k: whole(p.grad).clone() for k, p in own if p.grad is not None}
        self.seen[f"{update.step}/{update.phase}"] = kept
        for name, module in update.roles.items():
            if name != update.role:
                assert all(p.grad is None for p in module.parameters()), f"{update.phase} left a gradient in {name}"


def config(**changes: Any) -> TrainConfig:
    base = dict(steps=2, batch_size=1, accumulation=2, lr=1e-3, warmup=1, save_every=99, log_every=1, ema_decay=0.9)
    return TrainConfig(**{**base, "precision": "fp32", "clip": 1e9, **changes})


def train(
    run: str,
    kind: str,
    *,
    camera: str = "fused",
    heads: int | None = None,
    backbone: str = "wan",
    layout: LayoutConfig | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One run: its log, gradients by update, averaged weights."""
    watch, built = Gradients(), method(kind, camera, heads, backbone)
    trainer = Trainer(built, Clips(), config(**changes), run, observers=[watch], layout=layout)
    result = trainer.fit()
    weights = {role: trainer.trained_state(role) for role in trainer.trained}
    log = read_log(Path(run)) if dist.is_main() else []
    return {"log": log, "gradients": watch.seen, "weights": weights, "step": result.step, "finished": result.finished}


def train_all(run: str, cases: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """`train` of several (kind, options), one after the other."""
    return [train(str(Path(run) / str(i)), kind, **options) for i, (kind, options) in enumerate(cases)]


def laid_out(run: str, layout: LayoutConfig) -> None:
    """A run over processes as `layout` says."""
    train(run, "finetune", layout=layout)


def gathered_while_scoring(run: str) -> dict[str, bool]:
    """Whether the student's blocks lie gathered when its rollout ends, and when the teacher runs."""
    built, found = method("dmd"), {}
    trainer = Trainer(built, Clips(), config(steps=1, keep_gathered=True), run)
    weight = built.roles["generator"].blocks[0].attn1.to_q
    rollout = built.rollout

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        made = rollout(*args, **kwargs)
        found["seen"] = not isinstance(weight.weight, DTensor)
        return made

    built.rollout = watched
    built.roles["real"].blocks[0].register_forward_pre_hook(
        lambda m, args: found.update(generator=not isinstance(weight.weight, DTensor))
    )
    trainer.fit()
    return found


def compiled(run: str, cases: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """`train_all` with blocks compiled, for a backend that generates no code: what compilers trip over is before that."""
    with mock.patch.object(Block, "compile", lambda self, **how: nn.Module.compile(self, backend="aot_eager", **how)):
        return train_all(run, [(kind, {"compile": True, **options}) for kind, options in cases])


def counted(run: str, cases: list[tuple[str, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """`train_all`, and how often each of them gathered weights."""
    found = []
    for i, (kind, options) in enumerate(cases):
        with Gathers() as gathers:
            one = train(str(Path(run) / str(i)), kind, **options)
        found.append((gathers.count, one))
    return found


def alone(cases: list[tuple[str, dict[str, Any]]], job: Callable[..., Any] = train_all) -> list[dict[str, Any]]:
    """The same on this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        return job(folder, cases)


def unequal_exit(run: str) -> None:
    """Ranks that draw different exit steps, as a careless method would."""
    from worldline.methods.base import Rng

    Rng.shared = lambda self, stream: torch.Generator().manual_seed(3 + 2 * dist.rank())
    train(run, "dmd")


def in_turn(runs: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Trainings in given directories, one after the other: (directory, kind, options)."""
    return [train(run, kind, **options) for run, kind, options in runs]


def signalled(run: str) -> list[tuple[bool, int]]:
    """Rank 1 alone is asked to stop at step 3; then all go on. (finished, step) of both attempts."""

    def ask(step: int, steps: int, last: dict[str, float]) -> None:
        if step == 3 and dist.rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    ends = []
    for progress in (ask, None):
        result = Trainer(method("finetune"), Clips(), config(steps=6), run, progress=progress).fit()
        ends.append((result.finished, result.step))
    return ends
