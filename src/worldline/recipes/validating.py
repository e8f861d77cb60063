"""The evaluation in small while a stage trains: its model as it is to be played, on held-out maps that nothing else uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worldline.data.loader import LatentDataset
from worldline.functional.flow import add_noise, velocity
from worldline.models.backbone import Backbone
from worldline.recipes.sampling import averaged
from worldline.recipes.schema import ValidateSection
from worldline.recipes.workspace import Workspace
from worldline.rollout.bidirectional import with_given
from worldline.rollout.plan import RolloutPlan
from worldline.schema import WorldlineError
from worldline.train.loop import Trainer
from worldline.train.validation import Schedule, Validator

if TYPE_CHECKING:
    from worldline.evaluate.episodes import Episode
    from worldline.evaluate.player import Player

PROBED = 32  # held-out clips of `camera_use`
SIGMA = 0.9  # noise level there: high, where the place of things is decided


def validator(
    ws: Workspace, stage: str, trainer: Trainer, role: str, run_dir: Path, tell: Callable[[str], None]
) -> Validator | None:
    """The observer that measures a stage as its recipe says; None where it says nothing, or there is nothing to play."""
    section, model = ws.recipe.validation(stage), trainer.method.roles[role]
    if section is None or not isinstance(model, Backbone):
        return None

    def measure() -> tuple[Mapping[str, float], Mapping[str, Any]]:
        with averaged(trainer, role, model):
            return measured(ws, stage, section, model)

    schedule = Schedule(
        every=section.every,
        last=trainer.cfg.steps,
        metric=section.metric,
        better=section.better,
        settings={k: v for k, v in asdict(section).items() if k not in ("every", "take")},
    )
    return Validator(run_dir, schedule, measure, lambda: trainer.trained_state(role), tell)


def measured(
    ws: Workspace, stage: str, section: ValidateSection, model: Backbone | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and details of a stage's model (the one given, or the one on disk)."""
    from worldline.evaluate.validation import validate

    played = validation_player(ws, stage, section, model)
    found = validate(played, validation_episodes(ws, section), section.seed)
    figures, details = found.figures(), found.to_data()
    if stage in ws.recipe.stages and ws.recipe.stages[stage].method == "finetune":
        own, other = velocity_errors(ws, stage, played.model)
        if own:
            figures["camera_use"] = camera_use(own, other)
            details |= {"own": own, "other": other}
    return figures, details


def validation_player(ws: Workspace, stage: str, section: ValidateSection, model: Backbone | None = None) -> Player:
    """The stage's player with the few denoising steps of a validation; students keep their own."""
    # Imported here: measuring reads conversion, which trains.
    from worldline.recipes.measuring import player

    played = player(ws, stage, model)
    played = replace(played, codec=played.codec.to(played.device))
    if ws.few_step(stage):
        return played
    rollout = ws.recipe.rollout
    steps = min(rollout.multi_steps, section.steps)
    plan = RolloutPlan.multi_step(played.plan.visibility, steps, rollout.guidance, history=played.plan.history)
    return replace(played, plan=plan)


def validation_episodes(ws: Workspace, section: ValidateSection) -> list[Episode]:
    """Rendered once a run directory, on maps no training set may use, and others than those of its evaluations."""
    from worldline import dist
    from worldline.evaluate.episodes import build_episodes

    if section.seed == ws.recipe.evaluate.seed:
        raise WorldlineError(
            f"validate.seed is evaluate.seed ({section.seed}): the best weights would be chosen on the maps that judge them; "
            "expected another seed"
        )
    frames = {"spin_frames": ws.recipe.evaluate.spin_frames, "walk_frames": ws.recipe.evaluate.walk_frames}

    def build() -> list[Episode]:
        return build_episodes(ws.run_dir / "validation", section.episodes, section.seed, **frames)

    dist.on_main(build)
    return build()


def camera_use(own: Sequence[float], other: Sequence[float]) -> float:
    """Percent by which the velocity error of clips grows under other clips' cameras: 0 where cameras do not matter. It shows
    control long before a picture does."""
    return 100 * (sum(other) / sum(own) - 1)


@torch.no_grad()
def velocity_errors(ws: Workspace, stage: str, model: Backbone) -> tuple[list[float], list[float]]:
    """Of a bidirectional model: mean squared velocity errors of held-out clips under their own cameras and under those of
    other clips, all frames but the first at noise level SIGMA, the first given. Empty where there are no two such clips."""
    if len(ws.clips().split("heldout")) < 2:
        return [], []
    frames = ws.recipe.stages[stage].latents or ws.recipe.data.latents
    clips = LatentDataset(ws.run_dir / "encode" / "latents", "heldout", latents=frames, limit=PROBED)
    device, n = next(model.parameters()).device, len(clips)
    batch = clips.select(list(range(n))).to(device)
    other = clips.select([(i + n // 2) % n for i in range(n)]).to(device).cameras
    x0 = batch.latents.float()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(device)
    sigma = torch.full(x0.shape[:2], SIGMA, device=device)
    x_t, sigma = with_given(add_noise(x0, eps, sigma), sigma, x0[:, :1])
    errors = []
    with torch.autocast(device.type, torch.bfloat16):
        context = model.text_context(batch.text)
        for cameras in (batch.cameras, other):
            v = model(x_t, sigma, context, cameras=cameras)
            found = (v.float() - velocity(x0, eps))[:, 1:].square().flatten(1).mean(1)
            errors.append([round(float(e), 6) for e in found])
    return errors[0], errors[1]
