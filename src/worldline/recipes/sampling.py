"""Clips played while a stage trains: the evaluation in small, on held-out starts, with the weights as they are averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from worldline.evaluate.fidelity import psnr
from worldline.evaluate.player import to_uint8
from worldline.models.backbone import Backbone
from worldline.recipes.workspace import Workspace
from worldline.rollout.plan import RolloutPlan
from worldline.train.loop import Trainer
from worldline.train.parallel import fill, local
from worldline.train.samples import Samples

CLIPS = 2
STEPS = 12  # denoising steps of multi-step models: enough to see, a quarter of the evaluation's
LATENTS = 12  # latent frames at most


def sampler(ws: Workspace, stage: str, trainer: Trainer, role: str) -> Callable[[], Samples] | None:
    """What plays a stage's model as it is then; None where there is nothing to play (a codec, no held-out clip). Of several
    processes all must play, the same clips: sharded weights are gathered by every forward."""
    model = trainer.method.roles[role]
    if not isinstance(model, Backbone):
        return None
    held = ws.clips().split("heldout")
    if not len(held):
        return None

    def play() -> Samples:
        # Imported here: measuring reads conversion, which trains.
        from worldline.recipes.measuring import player

        played = player(ws, stage, model)
        played = replace(played, codec=played.codec.to(played.device))
        if not ws.few_step(stage):
            rollout = ws.recipe.rollout
            plan = RolloutPlan.multi_step(
                played.plan.visibility, min(rollout.multi_steps, STEPS), rollout.guidance, history=played.plan.history
            )
            played = replace(played, plan=plan)
        clips = [held[i] for i in range(min(CLIPS, len(held)))]
        grid = played.codec.grid
        F = min([*(len(c.frames) for c in clips), grid.pixel_frames(LATENTS + 1)])
        frames = np.stack([c.frames[:F] for c in clips])
        with averaged(trainer, role, model):
            made = played.play(frames[:, 0], [c.cameras[:F] for c in clips], [c.caption for c in clips])
        F = made.shape[1]
        with torch.no_grad():  # as the codec shows it: what a perfect model would make
            video = torch.from_numpy(frames[:, :F]).to(played.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
            truth = to_uint8(played.codec.decode(played.codec.encode(video)))
        return Samples(made, truth, {"psnr": float(psnr(made, truth)[:, 1:].mean())})

    return play


class averaged:
    """The averaged weights in a live network for a while; the live ones come back to the bit. Each process moves its part."""

    def __init__(self, trainer: Trainer, role: str, model: nn.Module) -> None:
        self.trainer, self.role, self.model = trainer, role, model

    def __enter__(self) -> None:
        self.trainer.parallel.settle()
        self.own = self.model.state_dict(keep_vars=True)
        self.live = {k: local(v.detach()).clone() for k, v in self.own.items()}
        ema = self.trainer.emas.get(self.role)
        for name, average in (ema.state() if ema else {}).items():
            fill(self.own[name], average)
        self.model.eval()

    def __exit__(self, *exc: object) -> None:
        self.trainer.parallel.settle()
        for name, value in self.own.items():
            with torch.no_grad():
                local(value).copy_(self.live[name])
        self.model.train()
        del self.live, self.own
