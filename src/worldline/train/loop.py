"""The training loop: batches in, phases trained, everything resumable to the bit.

All randomness is a function of (seed, step), and batches are a function of (seed, counter), so a checkpoint needs weights,
optimizer states and one number; a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldline import dist
from worldline.methods.base import Method, Phase, Rng
from worldline.models.frugal import blocks_of, compile_blocks, recompute_blocks
from worldline.schema import WorldlineError
from worldline.track import Tracker
from worldline.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from worldline.train.config import TrainConfig
from worldline.train.ema import EMA
from worldline.train.log import Log
from worldline.train.observers import Observer, Update
from worldline.train.optim import lr_factor, make_optimizer
from worldline.train.parallel import LayoutConfig, Parallel, fill_module, sharded, whole
from worldline.train.sharded_checkpoint import ShardWriter, is_sharded, load_moments, load_sharded
from worldline.train.signals import StopRequest

__all__ = ["Batches", "NonFiniteError", "Result", "TrainConfig", "Trainer"]


class NonFiniteError(WorldlineError):
    """Losses or gradients stayed non-finite; the last checkpoint is whole."""


class Batches(Protocol):
    """Where batches come from: batch `step` of a seed is always the same."""

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> Any: ...


@dataclass(frozen=True)
class Result:
    """How a run ended. finished is False when it was asked to stop; run again to go on."""

    finished: bool
    step: int
    seconds: float
    last: dict[str, float]


Progress = Callable[[int, int, dict[str, float]], None]  # step, steps, last logged values


class Trainer:
    """Trains the roles that a method's phases name; owns backward, clipping, optimizers, EMA, checkpoints and the log."""

    def __init__(
        self,
        method: Method,
        data: Batches,
        config: TrainConfig,
        run_dir: str | Path,
        *,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        observers: Sequence[Observer] = (),
        layout: LayoutConfig | None = None,
        track: Callable[[int], Sequence[Tracker]] | None = None,
    ) -> None:
        """observers: called around every update, see `worldline.train.observers`; layout: how several processes and their
        memory are used; track: opens trackers for a log that goes on from a step, on the first process."""
        self.observers, self.track = tuple(observers), track
        self.method, self.data, self.cfg, self.device = method, data, config, torch.device(device)
        self.run_dir, self.progress = Path(run_dir), progress
        self.trained = tuple(dict.fromkeys(p.role for p in method.phases))
        self.parallel = Parallel(config, self.device, layout)
        rolled = getattr(method, "rollout_roles", tuple(method.roles))
        if config.compile and "discriminator" in method.roles:
            raise WorldlineError(
                "train.compile with an adversary: its features are read off blocks, whose gradients came out 0.5 % apart where "
                "they were compiled; expected one of the two (train.compile=false, or gan_weight=0)"
            )
        again = [n for n in self.trained if blocks_of(method.roles[n])] or self.trained  # with none it is refused
        for name, module in method.roles.items():
            module.requires_grad_(name in self.trained).to(self.device)
            if config.recompute and name in again:
                recompute_blocks(module, self.parallel.layout.recompute_keeps)
            if config.compile:
                compile_blocks(module)
            self.parallel.place(name, module, name in self.trained, resident=name in rolled)
        self.optimizers = {r: make_optimizer(method.roles[r], self._lr(r), config) for r in self.trained}
        self.emas = {r: EMA(method.roles[r], config.ema_decay) for r in self.trained} if config.ema_decay else {}
        self.step, self.seconds, self._bad = 0, 0.0, 0
        self._pending: list[dict[str, Tensor]] = []
        self._logged: dict[str, float] = {}
        checkpoints = self.run_dir / "checkpoints"
        self._writer = ShardWriter(checkpoints, config.keep, config.keep_best, config.async_checkpoints)

    def _lr(self, role: str) -> float:
        return self.cfg.role_lr.get(role, self.cfg.lr)

    def fit(self) -> Result:
        """Run to the last step, from the newest checkpoint if there is one. Ctrl-C, SIGTERM or SIGUSR1 saves and returns.

        Of several processes, all call it; only rank 0 writes the log, and all stop together.
        """
        if self.cfg.threads:
            torch.set_num_threads(self.cfg.threads)
        self._resume()
        log = None
        if dist.is_main():
            log = Log(self.run_dir, self.step, self.track(self.step) if self.track is not None else ())
        began = saved = time.monotonic()
        before = self.seconds
        with StopRequest() as stop, dist.lockstep():
            while self.step < self.cfg.steps:
                self._train_step()
                self.step += 1
                self.seconds = before + time.monotonic() - began
                if self.step % self.cfg.log_every == 0 or self.step == self.cfg.steps:
                    self._logged = self._collect()
                    if log is not None:
                        log.write(self.step - 1, self._logged)
                for watcher in self.observers:
                    if (found := watcher.after_step(self.step)) and log is not None:
                        log.write(self.step - 1, {name: float(value) for name, value in found.items()})
                if self.progress is not None:
                    self.progress(self.step, self.cfg.steps, self._logged)
                overdue = time.monotonic() - saved > 60 * self.cfg.save_minutes
                stopping, overdue = (bool(v) for v in dist.largest([stop.requested, overdue]))
                if self.step % self.cfg.save_every == 0 or overdue or stopping or self.step == self.cfg.steps:
                    self.save()
                    saved = time.monotonic()
                self._writer.poll()
                if stopping:
                    break
            self._writer.finish()
        if log is not None:
            log.close()
        dist.barrier()
        return Result(self.step >= self.cfg.steps, self.step, self.seconds, self._logged)

    def _train_step(self) -> None:
        for module in self.method.roles.values():
            module.train()
        factor = lr_factor(self.step, self.cfg)
        for index, phase in enumerate(self.method.phases):
            if self.step % phase.every == 0:
                self._run_phase(index, phase, factor)
        self.method.after_step(self.step)

    def _run_phase(self, index: int, phase: Phase, factor: float) -> None:
        module, optimizer = self.method.roles[phase.role], self.optimizers[phase.role]
        for name in self.trained:
            self.method.roles[name].requires_grad_(name == phase.role)
        values: dict[str, Tensor] = {}
        own = self.parallel.own_micros()
        for micro in own:
            # Every phase has batches of its own: phase p of n takes counter n * step + p. Micro batches are numbered over
            # all processes: which of them takes one changes neither its samples nor its noise.
            counter = (self.step * len(self.method.phases) + index) * self.parallel.micros + micro
            batch = self.data.batch(self.cfg.seed, counter, self.parallel.samples, self.device)
            for watcher in self.observers:
                watcher.before_loss(self.step, phase, module, batch)
            rng = Rng(self.cfg.seed, self.step * len(self.method.phases) + index, 0, micro)
            with self._autocast():
                losses = phase.loss(batch, rng)
            (losses["loss"] / len(own)).backward()
            for name, value in losses.items():
                share = value.detach().float() / len(own)
                values[name] = values[name] + share if name in values else share
        self.parallel.settle()
        params = [p for p in module.parameters() if p.grad is not None]
        self.parallel.average_gradients(params)
        dist.mean_(list(values.values()))
        norm = whole(nn.utils.clip_grad_norm_(params, self.cfg.clip))
        finite, lr = bool(torch.isfinite(norm)) and bool(torch.isfinite(values["loss"])), self._lr(phase.role) * factor
        roles, emas = self.method.roles, self.emas
        update = Update(self.step, phase.name, phase.role, values, norm.detach(), finite, lr, roles, emas)
        extra = [watcher.before_update(update) for watcher in self.observers]
        if finite:
            self._bad = 0
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            if phase.role in self.emas:
                self.emas[phase.role].update(module)
        else:
            self._skip(phase)
        extra += [watcher.after_update(update) for watcher in self.observers]
        optimizer.zero_grad(set_to_none=True)
        logged: dict[str, Tensor] = {**values, "grad_norm": norm.detach()}
        for found in extra:
            logged |= {name: torch.as_tensor(value) for name, value in (found or {}).items()}
        self._pending.append({f"{phase.name}/{name}": value for name, value in logged.items()})

    def _skip(self, phase: Phase) -> None:
        self._bad += 1
        if self._bad > self.cfg.max_nonfinite:
            raise NonFiniteError(
                f"phase {phase.name!r} gave a non-finite loss or gradient {self._bad} times in a row, up to step {self.step}; "
                f"lower lr ({self._lr(phase.role)}), or look at the data; checkpoints in {self.run_dir} are whole"
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.cfg.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _collect(self) -> dict[str, float]:
        """Means since the last logged step; the only place where scalars leave the device."""
        sums: dict[str, list[Tensor]] = {}
        for values in self._pending:
            for name, value in values.items():
                sums.setdefault(name, []).append(value)
        self._pending.clear()
        out = {name: float(torch.stack([v.float() for v in vs]).nanmean()) for name, vs in sums.items()}
        return {**out, "lr": self.cfg.lr * lr_factor(self.step - 1, self.cfg)}

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: trained roles, their averages, and what follows them."""
        names = (*self.trained, *(n for n in self.method.roles if n in _moving(self.method)))
        weights: dict[str, dict[str, Tensor]] = {n: self.method.roles[n].state_dict() for n in names}
        return weights | {f"{name}.ema": ema.state() for name, ema in self.emas.items()}

    def save(self) -> None:
        """Write a checkpoint of the present step; of several processes, each its part."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "ema_updates": {n: e.updates for n, e in self.emas.items()},
            "logged": self._logged,
        }
        if dist.world_size() > 1:
            self._writer.save(self.step, self._weights(), self.method.roles, self.optimizers, state)
            return
        root, cfg = self.run_dir / "checkpoints", self.cfg
        optimizers = {n: o.state_dict() for n, o in self.optimizers.items()}
        save_checkpoint(root, self.step, self._weights(), optimizers, state, cfg.keep, cfg.keep_best)

    def _resume(self) -> None:
        if dist.is_main():
            self.run_dir.mkdir(parents=True, exist_ok=True)
        found = dist.share(checkpoints(self.run_dir / "checkpoints"))
        if not found:
            return
        if is_sharded(found[-1]):
            state = load_sharded(found[-1], self._weights(), self.method.roles, self.optimizers)
        else:
            state = self._load_whole(found[-1])
        for name, ema in self.emas.items():
            ema.updates = state["ema_updates"][name]
        self.step, self.seconds, self._logged = state["step"], state["seconds"], state.get("logged", {})

    def _load_whole(self, path: Path) -> dict[str, Any]:
        """A checkpoint of one process."""
        weights, optimizers, state = load_checkpoint(path)
        for name, module in self.method.roles.items():
            if name in weights:
                fill_module(module, weights[name])
            if name in self.optimizers and sharded(module):
                load_moments(self.optimizers[name], optimizers[name])
            elif name in self.optimizers:
                self.optimizers[name].load_state_dict(optimizers[name])
        for name, ema in self.emas.items():
            ema.load(weights[f"{name}.ema"], state["ema_updates"][name])
        return state

    @torch.no_grad()
    def trained_state(self, role: str, *, ema: bool = True) -> dict[str, Tensor]:
        """A trained role's weights, whole, averaged where an EMA exists and is asked for; buffers are the live ones. Of
        several processes, all must ask."""
        state = dict(self.method.roles[role].state_dict())
        if ema and role in self.emas:
            state.update(self.emas[role].state())
        return {k: whole(v.detach()).clone() for k, v in state.items()}


def _moving(method: Method) -> tuple[str, ...]:
    """Roles that `after_step` moves without training them (a consistency target): saved like trained ones."""
    return tuple(getattr(method, "moving_roles", ()))
