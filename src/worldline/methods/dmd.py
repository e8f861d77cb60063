"""Asymmetric distribution matching with self-rollout: a causal few-step student, bidirectional scores.

The student generates whole clips from its own past (Self-Forcing, arXiv:2506.08009), is re-noised, and moves along the
difference of two scores: the frozen teacher's and that of a critic trained on what the student makes (DMD2,
arXiv:2405.14867). Two more terms can stand beside it, both from real clips: an adversarial one on the teacher's features
(`adversarial.py`) and a regression (`regression.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from worldline.functional.flow import add_noise, cfg, shift, velocity, velocity_to_x0
from worldline.functional.losses import Normalizer, dmd_gradient, dmd_surrogate, flow_matching_loss, surrogate
from worldline.methods.adversarial import AdversarialConfig, Discriminator
from worldline.methods.base import Phase, Rng, added
from worldline.methods.guided import doubled
from worldline.methods.noise import frame_weights
from worldline.methods.offload import Waiting
from worldline.methods.regression import real_regression
from worldline.models.backbone import Backbone
from worldline.rollout.bidirectional import with_given
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, TextEmbedding, WorldlineError


@dataclass(frozen=True, kw_only=True)
class DMDConfig:
    """Distribution matching distillation; defaults are the corrected ones (classifier-free scale 4 = minWM's c + 3 (c - u))."""

    guidance: float = 4.0  # of the real score, u + g (c - u)
    critic_updates: int = 5  # critic updates a generator update
    score_shift: float = 5.0  # of the level the scores are asked at
    band: tuple[float, float] = (0.02, 0.98)  # those levels are clamped into
    normalizer: Normalizer = "per_sample"
    # Where those levels are drawn: anywhere, or between the level of the student's exit step and its next one, as minWM's
    # HunyuanVideo line does.
    score_levels: Literal["all", "exit"] = added("all")
    # The clock that the scores are told: the level, or 1 - u of the level shift(u), which runs backwards: what that line's
    # published weights were trained with.
    score_clock: Literal["level", "index"] = added("level")
    latents: int | None = None  # latent frames of a rollout (default: the clip's)
    chunkwise_backward: bool = False  # activations of one chunk, for one more forward of the exit steps; exact
    critic_draws: int = 1  # noisings of one rollout that a critic update learns from: unbiased, but they are correlated
    # The critic of a generator step learns from the clip that step made, one rollout less in every critic_updates + 1. That
    # clip is by the weights before the step: the critic trails the student by one update there.
    share_rollout: bool = False
    offload: tuple[Literal["real", "fake"], ...] = ()  # networks that wait in host memory for their turn (one device)
    gan_weight: float = 0.0  # of an adversarial term on the teacher's features; adds a discriminator; 0 is none
    gan: AdversarialConfig = field(default_factory=AdversarialConfig)
    regression_weight: float = (
        0.0  # of x0 regression on real clips at the student's levels, which covers modes; 0 is none
    )

    def __post_init__(self) -> None:
        if self.critic_updates < 1 or self.critic_draws < 1:
            raise WorldlineError(f"{self}: expected critic_updates >= 1 and critic_draws >= 1")
        if self.gan_weight < 0 or self.regression_weight < 0:
            raise WorldlineError(f"{self}: expected gan_weight >= 0 and regression_weight >= 0")

    def build(
        self, generator: Backbone, real: Backbone, fake: Backbone, plan: RolloutPlan, empty: TextEmbedding
    ) -> DMD:
        """generator: the causal student; real: frozen bidirectional model; fake: the critic, starting from the same."""
        return DMD(self, generator, real, fake, plan, empty)


class DMD:
    """Generator, real score, fake score; the generator moves every `critic_updates` steps, the critic every step."""

    rollout_roles = ("generator",)  # many forwards a step: worth keeping gathered where weights are sharded

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
        self.roles: dict[str, nn.Module] = {"generator": generator, "real": real, "fake": fake}
        self.phases: tuple[Phase, ...] = (
            Phase("generator", "generator", self.generator_loss, every=config.critic_updates),
            Phase("critic", "fake", self.critic_loss),
        )
        self.discriminator: Discriminator | None = None
        if config.gan_weight > 0:
            self.discriminator = self.roles["discriminator"] = config.gan.build(real)
            self.phases += (Phase("discriminator", "discriminator", self.discriminator_loss),)
        self.waiting: dict[str, Waiting] = {
            name: Waiting(name, self.roles[name], name == "fake", [m for n, m in self.roles.items() if n != name])
            for name in config.offload
        }
        # Clips of this step by micro batch, with what they were made for: a checkpoint falls between steps, when there are none.
        self._made: dict[int, tuple[LatentBatch, Tensor]] = {}

    def _present(self, device: torch.device, *names: str) -> None:
        """Have these networks on the device; the others that may wait, wait."""
        for waiting in self.waiting.values():
            if waiting.name not in names:
                waiting.away()
        for waiting in self.waiting.values():
            if waiting.name in names:
                waiting.back(device)

    def _cut(self, batch: LatentBatch) -> LatentBatch:
        n = self.cfg.latents
        if n is None:
            return batch
        cameras = None if batch.cameras is None else batch.cameras[:n]
        return LatentBatch(batch.latents[:, :n], batch.text, cameras, batch.ids)

    def rollout(self, batch: LatentBatch, rng: Rng, *, grad: bool) -> Tensor:
        """The student's own clip [B, T, C, H, W], given frames in front. One exit step a rollout, shared by its chunks;
        the gradient runs through that step's forward of every chunk, and never through the cache."""
        exit_step = self._exit_step(rng)
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

    def _exit_step(self, rng: Rng) -> int:
        return int(torch.randint(len(self.plan.sigmas), (), generator=rng.shared("exit")))

    def _renoise(self, x0: Tensor, rng: Rng, stream: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """A noised clip for the scores, one level a sample, given frames clean: (x_t, sigma [B, T], eps)."""
        index = torch.randint(1000, (len(x0), 1), generator=rng.generator(stream + "level")) / 1000
        if self.cfg.score_levels == "exit":
            step, ends = self._exit_step(rng), torch.tensor([*self.plan.sigmas, 0.0])
            upper, lower = shift(ends[step : step + 2], 1 / self.cfg.score_shift)
            index = lower + (upper - lower) * index
        level = shift(index, self.cfg.score_shift).clamp(*self.cfg.band).float().to(x0.device)
        eps = rng.randn_like(x0, stream + "score noise")
        full = level.expand(x0.shape[:2])
        return *self._noised(x0, eps, full), eps

    def _told(self, sigma: Tensor) -> Tensor:
        """What the scores are told of noise levels [B, T]; given frames are clean by either clock."""
        if self.cfg.score_clock == "level":
            return sigma
        return torch.where(sigma > 0, 1 - shift(sigma, 1 / self.cfg.score_shift), 0)

    def _noised(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        given = self.plan.visibility.prefix
        return with_given(add_noise(x0, eps, sigma), sigma, x0[:, :given] if given else None)

    def generator_loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """0.5 mean (x - sg(x - g))^2 with g the normalised difference of the scores, over generated frames; plus
        gan_weight (-mean D) plus regression_weight mean (x0_hat - x0)^2 of real clips."""
        batch, given = self._cut(batch), self.plan.visibility.prefix
        self._present(batch.latents.device)
        x0 = self.rollout(batch, rng, grad=True)
        made = x0.detach().float()
        grad = self._gradient(batch, made, rng)[:, given:]
        values = {"loss": dmd_surrogate(x0[:, given:], grad), "gradient": grad.abs().mean()}
        if self.discriminator is not None:
            fooled, grad = self._fool(self.discriminator, batch, made, rng)
            values["loss"] = values["loss"] + self.cfg.gan_weight * surrogate(x0, grad, fooled)
            values["adversarial"] = fooled
        self._present(batch.latents.device)
        if self.cfg.regression_weight > 0:
            missed = real_regression(self.generator, batch, self.plan.visibility, self.plan.sigmas, rng)
            values["loss"] = values["loss"] + self.cfg.regression_weight * missed
            values["regression"] = missed.detach()
        if self.cfg.share_rollout:
            self._made[rng.micro] = (batch, made)
        return values

    @torch.no_grad()
    def _gradient(self, batch: LatentBatch, x0: Tensor, rng: Rng) -> Tensor:
        """The normalised difference of the scores at x0 [B, T, C, H, W]; its mean is over generated frames."""
        given = self.plan.visibility.prefix
        x_t, sigma, _ = self._renoise(x0, rng)
        self._present(x0.device, "real")
        text, cameras = doubled(batch.text, self.empty, batch.cameras)
        told = self._told(sigma)
        v = self.real(x_t.repeat(2, 1, 1, 1, 1), told.repeat(2, 1), self.real.text_context(text), cameras=cameras)
        cond, uncond = v.chunk(2)
        real = velocity_to_x0(x_t, cfg(uncond, cond, self.cfg.guidance), sigma)
        self._present(x0.device, "fake")
        v_fake = self.fake(x_t, told, self.fake.text_context(batch.text), cameras=batch.cameras)
        fake = velocity_to_x0(x_t, v_fake, sigma)
        grad = dmd_gradient(fake[:, given:], real[:, given:], x0[:, given:], self.cfg.normalizer)
        return torch.cat([torch.zeros_like(x0[:, :given]), grad], dim=1)

    def _fool(self, discriminator: Discriminator, batch: LatentBatch, x0: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """(the generator's adversarial loss, its gradient at x0): taken here, so that the teacher's activations are gone
        before the rollout's backward begins."""
        self._present(x0.device, "real")
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            x_t, sigma, _ = self._renoise(x0, rng, "gan ")
            given = self.plan.visibility.prefix
            loss = discriminator.fool(self.real, x_t, self._told(sigma), batch.text, batch.cameras, given)
            (grad,) = torch.autograd.grad(loss, x0)
        return loss.detach(), grad

    def critic_loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """Flow matching on the student's clips: mean (v_fake - (eps - x_gen))^2 over generated frames and noisings."""
        batch, x0 = self._clip(self._cut(batch), rng)
        if self.discriminator is not None:
            self._made[rng.micro] = (batch, x0)
        self._present(x0.device, "fake")
        draws = [self._renoise(x0, rng, f"{n} " if n else "") for n in range(self.cfg.critic_draws)]
        x_t, sigma, eps = (torch.cat(parts) for parts in zip(*draws, strict=True))
        n = len(draws)
        text = replace(batch.text, tokens=batch.text.tokens.repeat(n, 1, 1), mask=batch.text.mask.repeat(n, 1))
        cameras = None if batch.cameras is None else batch.cameras.tile(batch=n)
        v = self.fake(x_t, self._told(sigma), self.fake.text_context(text), cameras=cameras)
        weight = frame_weights(x0.shape[1], self.plan.visibility.prefix).to(x0.device)
        target = velocity(x0.repeat(n, 1, 1, 1, 1), eps)
        return {"loss": flow_matching_loss(v, target, weight.expand(x_t.shape[:2]))}

    def discriminator_loss(self, batch: LatentBatch, rng: Rng) -> dict[str, Tensor]:
        """Hinge loss between the clips the critic learnt from in this step and their real counterparts, at one level."""
        assert self.discriminator is not None, "only built with a gan_weight"
        batch, x0 = self._clip(self._cut(batch), rng)
        self._present(x0.device, "real")
        fake, sigma, _ = self._renoise(x0, rng, "gan ")
        real, _ = self._noised(batch.latents, rng.randn_like(x0, "gan real noise"), sigma)
        noise = rng.randn_like(x0, "gan perturbation")
        given = self.plan.visibility.prefix
        return self.discriminator.loss(
            self.real, real, fake, self._told(sigma), batch.text, batch.cameras, given, noise
        )

    @torch.no_grad()
    def _clip(self, batch: LatentBatch, rng: Rng) -> tuple[LatentBatch, Tensor]:
        """A clip of the student's without gradients, and the batch it was made for: what a phase before this one left, or
        of this batch."""
        if (found := self._made.pop(rng.micro, None)) is not None:
            return found
        self._present(batch.latents.device, "fake")  # a critic that is there stays: copies are for generator steps
        return batch, self.rollout(batch, rng, grad=False).float()

    def after_step(self, step: int) -> None:
        """Nothing moves beside the trained networks; this step's clips are let go of."""
        self._made.clear()
