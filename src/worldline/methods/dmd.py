"""Asymmetric distribution matching with self-rollout: a causal few-step student, bidirectional scores.

The student generates whole clips from its own past (Self-Forcing, arXiv:2506.08009), is re-noised, and moves along the
difference of two scores: the frozen teacher's and that of a critic trained on what the student makes (DMD2,
arXiv:2405.14867).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.functional.flow import add_noise, cfg, shift, velocity, velocity_to_x0
from worldline.functional.losses import Normalizer, dmd_gradient, dmd_surrogate, flow_matching_loss
from worldline.methods.base import Phase, Rng
from worldline.methods.guided import doubled
from worldline.methods.noise import frame_weights
from worldline.models.backbone import Backbone
from worldline.rollout.bidirectional import with_given
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, TextEmbedding


@dataclass(frozen=True, kw_only=True)
class DMDConfig:
    """Distribution matching distillation; defaults are the corrected ones (classifier-free scale 4 = minWM's c + 3 (c - u))."""

    guidance: float = 4.0  # of the real score, u + g (c - u)
    critic_updates: int = 5  # critic updates a generator update
    score_shift: float = 5.0  # of the level the scores are asked at
    band: tuple[float, float] = (0.02, 0.98)  # those levels are clamped into
    normalizer: Normalizer = "per_sample"
    latents: int | None = None  # latent frames of a rollout (default: the clip's)
    chunkwise_backward: bool = False  # activations of one chunk, for one more forward of the exit steps; exact

    def build(
        self, generator: Backbone, real: Backbone, fake: Backbone, plan: RolloutPlan, empty: TextEmbedding
    ) -> DMD:
        """generator: the causal student; real: frozen bidirectional model; fake: the critic, starting from the same."""
        return DMD(self, generator, real, fake, plan, empty)


class DMD:
    """Generator, real score, fake score; the generator moves every `critic_updates` steps, the critic every step."""

    def __init__(
        self,
        config: DMDConfig,
        generator: Backbone,
        real: Backbone,
        fake: Backbone,
        plan: RolloutPlan,
        empty: TextEmbedding,
    ) -> None:
        self.cfg, self.plan, self.empty = config, plan, empty
        self.generator, self.real, self.fake = generator, real, fake
        self.roles = {"generator": generator, "real": real, "fake": fake}
        self.phases = (
            Phase("generator", "generator", self.generator_loss, every=config.critic_updates),
            Phase("critic", "fake", self.critic_loss),
        )

    def _cut(self, batch: LatentBatch) -> LatentBatch:
        n = self.cfg.latents
        if n is None:
            return batch
        cameras = None if batch.cameras is None else batch.cameras[:n]
        return LatentBatch(batch.latents[:, :n], batch.text, cameras, batch.ids)

    def rollout(self, batch: LatentBatch, rng: Rng, *, grad: bool) -> Tensor:
        """The student's own clip [B, T, C, H, W], given frames in front. One exit step a rollout, shared by its chunks;
        the gradient runs through that step's forward of every chunk, and never through the cache."""
        exit_step = int(torch.randint(len(self.plan.sigmas), (), generator=rng.shared("exit")))
        given = self.plan.visibility.prefix
        prefix = batch.latents[:, :given] if given else None
        noise = rng.randn_like(batch.latents, "rollout")
        with torch.set_grad_enabled(grad):
            loop = ChunkLoop(self.generator, self.plan, batch.text, chunkwise=self.cfg.chunkwise_backward)
            renoise = rng.generator("renoise")
            chunks = generate(
                loop, noise, batch.cameras, prefix=prefix, generator=renoise, exit_step=exit_step, grad=grad
            )
            return torch.cat([*([prefix] if prefix is not None else []), *chunks], dim=1)

    def _renoise(self, x0: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """A noised clip for the scores, one level a sample, given frames clean: (x_t, sigma [B, T], eps)."""
        index = torch.randint(1000, (len(x0), 1), generator=rng.generator("level"))
        level = shift(index / 1000, self.cfg.score_shift).clamp(*self.cfg.band).float().to(x0.device)
        eps = rng.randn_like(x0, "score noise")
        full = level.expand(x0.shape[:2])
        given = self.plan.visibility.prefix
        x_t, sigma = with_given(add_noise(x0, eps, full), full, x0[:, :given] if given else None)
        return x_t, sigma, eps

    def generator_loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """0.5 mean (x - sg(x - g))^2 with g the normalised difference of the scores, over generated frames."""
        batch, given = self._cut(batch), self.plan.visibility.prefix
        x0 = self.rollout(batch, rng, grad=True)
        with torch.no_grad():
            x_t, sigma, _ = self._renoise(x0.detach().float(), rng)
            text, cameras = doubled(batch.text, self.empty, batch.cameras)
            v = self.real(x_t.repeat(2, 1, 1, 1, 1), sigma.repeat(2, 1), self.real.text_context(text), cameras=cameras)
            cond, uncond = v.chunk(2)
            real = velocity_to_x0(x_t, cfg(uncond, cond, self.cfg.guidance), sigma)
            v_fake = self.fake(x_t, sigma, self.fake.text_context(batch.text), cameras=batch.cameras)
            fake = velocity_to_x0(x_t, v_fake, sigma)
            grad = dmd_gradient(fake[:, given:], real[:, given:], x0[:, given:], self.cfg.normalizer)
        return {"loss": dmd_surrogate(x0[:, given:], grad), "gradient": grad.abs().mean()}

    def critic_loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """Flow matching on the student's clips: mean (v_fake - (eps - x_gen))^2 over generated frames."""
        batch = self._cut(batch)
        with torch.no_grad():
            x0 = self.rollout(batch, rng, grad=False).float()
            x_t, sigma, eps = self._renoise(x0, rng)
        v = self.fake(x_t, sigma, self.fake.text_context(batch.text), cameras=batch.cameras)
        weight = frame_weights(x0.shape[1], self.plan.visibility.prefix).to(x0.device)
        return {"loss": flow_matching_loss(v, velocity(x0, eps), weight.expand(x0.shape[:2]))}

    def after_step(self, step: int) -> None:
        """Nothing moves beside the trained networks."""
