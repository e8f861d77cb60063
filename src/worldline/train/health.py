"""Watches a training run and says, once and in words, what is wrong with it.

Every `every` steps one update of each phase is looked at more closely: how far weights move, whether averages follow,
whether cameras reach the loss, how predictions change along a clip. None of it needs another forward. Samples are played
by a callable that a recipe hands in, as training knows no evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline import dist
from worldline.methods.base import Phase
from worldline.schema import WorldlineError
from worldline.train.diagnosis import RULES, Chart, Finding, not_finite
from worldline.train.log import note, read_notes
from worldline.train.observers import Silent, Update
from worldline.train.samples import Samples, diagnose, grid, measure
from worldline.train.vitals import ForwardWatch, WeightProbe, moved_share, nonfinite, relative, steering_gradient


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """How closely a run is watched. Nothing here changes what is learnt."""

    every: int = 25  # steps between closer looks at an update; 0 never looks (what is free is still watched)
    samples: bool = True  # play a few held-out clips while training and keep them as pictures
    sample_every: int = 250  # steps between those
    budget: float = 0.01  # share of the training time that samples may take: those over it wait

    def __post_init__(self) -> None:
        if self.every < 0 or self.sample_every < 1 or not 0 <= self.budget <= 1:
            raise WorldlineError(f"health: {self}: expected every >= 0, sample_every >= 1 and budget in [0, 1]")


@dataclass
class _Look:
    """One update under closer look."""

    watch: ForwardWatch
    before: Tensor  # sampled weights


class Health(Silent):
    """An observer of the trainer. Findings go to the run's log and, each kind of a phase once, to `tell`."""

    def __init__(
        self,
        config: HealthConfig,
        run_dir: str | Path,
        *,
        moving_roles: tuple[str, ...] = (),
        tell: Callable[[Finding], None] | None = None,
        play: Callable[[], Samples | None] | None = None,
    ) -> None:
        """moving_roles: of the method, networks that follow a trained one; play: the evaluation in small, of the weights as
        they are averaged now."""
        self.cfg, self.run_dir, self.moving, self.tell, self.play = config, Path(run_dir), moving_roles, tell, play
        self.findings = findings(self.run_dir)
        self._charts: dict[str, Chart] = {}
        self._probes: dict[str, WeightProbe] = {}
        self._past: dict[str, Tensor] = {}  # samples of weights and averages at the last look, by role and kind
        self._looks: dict[str, _Look] = {}
        self._batch: Any = None
        self._sums: dict[str, list[float]] = {}
        self._step, self._updates, self._began = -1, 0, time.monotonic()
        self._spent: list[float] = []  # seconds of every sampling
        self._figures: list[dict[str, float]] = []

    # -- what the trainer calls ------------------------------------------------------------------------------------

    def before_loss(self, step: int, phase: Phase, module: nn.Module, batch: Any) -> None:
        """A micro batch is about to be used."""
        if step != self._step:
            self._step, self._updates = step, self._updates + 1
            if step and step % self.cfg.sample_every == 0:
                self.sample(step)
        self._batch = batch
        # The first update of the phase in every span of `every` steps: a function of the step, so that resuming keeps it.
        if self.cfg.every and step % self.cfg.every < phase.every and phase.name not in self._looks:
            self._looks[phase.name] = _Look(ForwardWatch(module).__enter__(), torch.zeros(0))

    def before_update(self, update: Update) -> dict[str, float] | None:
        """Gradients are there."""
        module = update.roles[update.role]
        if not update.applied:
            self._nonfinite(update, module)
        look = self._looks.get(update.phase)
        if look is None:
            return None
        look.watch.__exit__()
        if not update.applied:
            del self._looks[update.phase]
            return None
        probe = self._probes.setdefault(update.role, WeightProbe(module))
        look.before = probe.read(dict(module.named_parameters()))
        found = look.watch.signals()
        if getattr(self._batch, "cameras", None) is not None:
            layers = steering_gradient(module)
            found |= look.watch.camera_gradients() | ({} if layers is None else {"camera_layers": layers})
        return self._note(update, found)

    def after_update(self, update: Update) -> dict[str, float] | None:
        """Weights are the new ones."""
        if not update.applied:
            return None
        self._every_update(update)
        look = self._looks.pop(update.phase, None)
        if look is None:
            return None
        out = self._note(update, self._movement(update, look))
        chart = self._chart(update)
        chart.add("grad_norm", float(update.gradient_norm))
        chart.add("mean_loss", _mean(self._sums.pop(update.phase, [])))
        for rule in RULES:
            self._say(rule(chart, update.step))
        return out

    def finish(self, step: int) -> None:
        """The run is over after `step` steps: the last samples."""
        self.sample(step, final=True)

    # -- looking ---------------------------------------------------------------------------------------------------

    def _chart(self, update: Update) -> Chart:
        return self._charts.setdefault(update.phase, Chart(update.phase, update.role))

    def _note(self, update: Update, signals: dict[str, float]) -> dict[str, float]:
        chart = self._chart(update)
        for name, value in signals.items():
            # The first update of a branch that starts silent cannot have a gradient before it.
            if update.step > 0 or not name.startswith("camera_"):
                chart.add(name, value)
        return {f"health/{name}": value for name, value in signals.items()}

    def _every_update(self, update: Update) -> None:
        """What is free: losses that are on the host by now."""
        self._sums.setdefault(update.phase, []).append(float(update.losses["loss"]))
        if "gradient" in update.losses:
            self._chart(update).add("gradient", float(update.losses["gradient"]))

    def _movement(self, update: Update, look: _Look) -> dict[str, float]:
        """How far the update went, and whether averages come along."""
        role, probe = update.role, self._probes[update.role]
        weights = probe.read(dict(update.roles[role].named_parameters()))
        out = {"update_ratio": relative(weights, look.before), "update_share": moved_share(look.before, weights)}
        if role in self._past:
            out["moved"] = moved_share(self._past[role], weights)
        self._past[role] = weights
        followers = {"ema": update.emas[role].state()} if role in update.emas else {}
        for name in self.moving:
            followers["target"] = dict(update.roles[name].named_parameters())
        for name, values in followers.items():
            average, key = probe.read(values), f"{role}/{name}"
            if len(average) != len(weights):
                continue  # another kind of network
            out[f"{name}_distance"] = relative(average, weights)
            if key in self._past:
                out[f"{name}_moved"] = moved_share(self._past[key], average)
            self._past[key] = average
        return out

    def _nonfinite(self, update: Update, module: nn.Module) -> None:
        latents, ids = getattr(self._batch, "latents", None), []
        if isinstance(latents, Tensor):
            bad = ~torch.isfinite(latents.flatten(1)).all(dim=1)
            names = getattr(self._batch, "ids", ())
            ids = [names[i] if i < len(names) else f"number {i}" for i in bad.nonzero().flatten().tolist()]
        loss = float(update.losses["loss"])
        weights, gradients = nonfinite(module, gradients=False), nonfinite(module, gradients=True)
        self._say(not_finite(update.step, update.phase, loss, gradients, weights=weights, ids=ids))

    # -- samples ---------------------------------------------------------------------------------------------------

    def sample(self, step: int, *, final: bool = False) -> Samples | None:
        """Play the weights as they are after `step` steps, measure, and keep a picture as samples/step-N.png, where the
        budget admits it."""
        if self.play is None or not self.cfg.samples or not self._affordable():
            return None
        began = time.monotonic()
        samples = self.play()
        self._spent.append(time.monotonic() - began)
        if samples is None:
            return None
        figures = measure(samples)
        self._figures.append(figures)
        for finding in diagnose(step, self._figures, final=final):
            self._say(finding)
        if dist.is_main():
            folder = self.run_dir / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            grid(samples).save(folder / f"step-{step:08d}.png")
            note(self.run_dir, step - 1, {f"samples/{name}": value for name, value in figures.items()})
        return samples

    def _affordable(self) -> bool:
        """Whether one more would stay within the budget: the first process's clock decides, as all play together. Before the
        first one nobody knows what it takes: as long as two steps, say."""
        if self.cfg.budget == 1:
            return True
        elapsed = time.monotonic() - self._began
        next_one = self._spent[-1] if self._spent else 2 * elapsed / max(self._updates, 1)
        return dist.share(sum(self._spent) + next_one <= self.cfg.budget * elapsed)

    # -- telling ---------------------------------------------------------------------------------------------------

    def _say(self, finding: Finding | None) -> None:
        """Log a finding and tell it, the first of its kind and place alone."""
        if finding is None or any((f.kind, f.where) == (finding.kind, finding.where) for f in self.findings):
            return
        self.findings.append(finding)
        if dist.is_main():
            note(self.run_dir, finding.step, {"finding": asdict(finding)})
            if self.tell is not None:
                self.tell(finding)


def findings(run_dir: str | Path) -> list[Finding]:
    """All that was found in a run, as its log has it."""
    return [Finding(**line["finding"]) for line in read_notes(Path(run_dir)) if "finding" in line]


def _mean(values: list[float]) -> float:
    """nan of none: charts leave it out."""
    return sum(values) / len(values) if values else float("nan")
