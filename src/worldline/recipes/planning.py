"""What a recipe would cost, before anything is loaded: memory, operations, hours and disk of every training stage."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from worldline.methods.ode import ODEConfig
from worldline.recipes.codec_plan import codec_needs
from worldline.recipes.costs import (
    parameters,
)
from worldline.recipes.devices import Device
from worldline.recipes.footprint import Assessment, Costs, Role, assess, clip_of
from worldline.recipes.host import clips_of
from worldline.recipes.mends import key, mends, shorter, spread
from worldline.recipes.schema import Recipe, StageSection
from worldline.schema import WorldlineError
from worldline.train.parallel import shares

SMALLEST_BATCH = 16
"""minWM (arXiv:2605.30263) teaching camera control: batches under 4 fail, 8 are unstable, 16 work."""


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. Bytes, operations, seconds."""

    name: str
    method: str
    roles: tuple[Role, ...]
    memory: dict[
        str, float
    ]  # at the peak: weights, gradients, optimizer, ema, activations, caches; on a CPU host.KINDS too
    phase: str  # that has the peak
    flops_per_step: float
    once_flops: float  # before the first step (the teacher's trajectories)
    seconds: float
    steps: int
    global_batch: int
    disk: dict[str, float]  # checkpoints, model, trajectories
    fits: bool
    mends: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def peak(self) -> float:
        """Bytes at the peak."""
        return sum(self.memory.values())

    @property
    def parameters(self) -> int:
        """Of all networks."""
        return sum(r.parameters for r in self.roles)

    @property
    def trained(self) -> int:
        """Of those that are trained."""
        return sum(r.parameters for r in self.roles if r.trained)


@dataclass(frozen=True)
class RecipePlan:
    """Every stage of a recipe, and what they share."""

    recipe: str
    device: Device
    devices: int
    utilisation: float
    clip: dict[str, int]  # latents, tokens a latent, latent height and width
    clips: int | None  # encoded; None where the data is not there yet
    latent_bytes: int  # of one encoded clip
    text_bytes: int  # and of a prompt, at most; equal prompts are kept once
    stages: tuple[StagePlan, ...]

    @property
    def disk(self) -> float:
        """Bytes on disk at the end: encoded clips (where their number is known), checkpoints, models, trajectories."""
        encoded = (self.clips or 0) * (self.latent_bytes + self.text_bytes)
        return encoded + sum(sum(s.disk.values()) for s in self.stages)


def plan_recipe(recipe: Recipe, device: Device, *, devices: int = 1, utilisation: float | None = None) -> RecipePlan:
    """The plan of every training stage of a recipe. Loads no weights. Raises WorldlineError where clips do not fit."""
    if devices < 1:
        raise WorldlineError(f"{devices} devices; expected at least 1")
    share = device.utilisation if utilisation is None else utilisation
    if not 0 < share <= 1:
        raise WorldlineError(f"utilisation {share}; expected more than 0 and at most 1")
    clip, config = clip_of(recipe), recipe.model.config()
    clips = clips_of(recipe)
    sections = dict(recipe.stages)
    if recipe.base.path is None:
        base = StageSection(
            method="finetune", latents=recipe.base.latents, options=recipe.base.options, train=recipe.base.train
        )
        sections = {"base": base, **sections}
    latent = 4 * clip.height * clip.width * config.in_channels
    stages = tuple(
        _stage(recipe, name, section, device, devices, share, clips, latent) for name, section in sections.items()
    )
    if recipe.codec.path is None:
        stages = (_codec(recipe, device, devices, share), *stages)
    return RecipePlan(
        recipe=recipe.name,
        device=device,
        devices=devices,
        utilisation=share,
        clip={"latents": clip.frames, "tokens": clip.tokens, "height": clip.height, "width": clip.width},
        clips=clips,
        latent_bytes=latent * clip.encoded,
        text_bytes=(4 if recipe.text.kind == "hash" else 2) * config.text_len * config.text_dim,
        stages=stages,
    )


def _codec(recipe: Recipe, device: Device, devices: int, utilisation: float) -> StagePlan:
    train = recipe.codec.train
    batch, micros = shares(train, max(1, devices // train.sequence_parallel))
    needs = codec_needs(recipe, on_cpu=device.name == "cpu", batch=batch, accumulation=max(1, micros // devices))
    samples = train.batch_size * train.accumulation
    fits = device.holds(sum(needs.memory.values()))
    mend = "--set codec.train.batch_size=1" if needs.phase == "codec" else "--set data.build.maps=N with fewer maps"
    return StagePlan(
        name="codec",
        method="autoencoder",
        roles=(needs.role,),
        memory=needs.memory,
        phase=needs.phase,
        flops_per_step=samples * needs.flops,
        once_flops=0.0,
        seconds=samples * needs.flops * train.steps / devices / (device.tflops * 1e12 * utilisation),
        steps=train.steps,
        global_batch=samples,
        disk={
            "checkpoints": train.keep * sum(needs.role.states(needs.setting).values()),
            "model": 4.0 * needs.role.parameters,
        },
        fits=fits,
        mends=() if fits else (mend,),
    )


def _stage(
    recipe: Recipe,
    name: str,
    section: StageSection,
    device: Device,
    devices: int,
    utilisation: float,
    clips: int | None,
    latent: int,
) -> StagePlan:
    train, options = section.train, section.options
    costs = Costs(recipe, section, cameras=name != "base", on_cpu=device.name == "cpu")
    found = assess(costs, spread(section, devices))
    samples = train.batch_size * train.accumulation
    per_step = samples * sum(p.flops / p.every for p in found.updates)
    ode = options if isinstance(options, ODEConfig) else None
    solved = min(ode.clips, clips or ode.clips) if ode else 0
    once = found.once * solved
    disk = {
        "checkpoints": train.keep * _checkpoint(found),
        "model": 4.0 * parameters(costs.config)[0],
    }
    if ode:
        disk["trajectories"] = solved * (ode.steps + 1) * costs.clip.frames * latent / 2  # fp16
    fits = device.holds(found.peak)
    warnings = []
    if samples < SMALLEST_BATCH:
        warnings.append(
            f"global batch {samples} is below {SMALLEST_BATCH}: minWM found camera control unstable at 8 and absent under 4 "
            f"(arXiv:2605.30263); set {key(name)}.train.accumulation={ceil(SMALLEST_BATCH / train.batch_size)}"
        )
    advice = [] if fits else mends(name, costs, device, devices)
    if not fits and (fewer := shorter(costs, device)):
        where = f"{key(name)}.{'options.' if section.method == 'dmd' else ''}latents"
        advice.append(f"or --set {where}={fewer} (shorter clips, a shorter memory learnt)")
    return StagePlan(
        name=name,
        method=section.method if name != "base" else "pretraining",
        roles=found.networks,
        memory=found.memory,
        phase=found.phase,
        flops_per_step=per_step,
        once_flops=once,
        # The teacher's trajectories are solved by one of them.
        seconds=(per_step * train.steps / devices + once) / (device.tflops * 1e12 * utilisation),
        steps=train.steps,
        global_batch=samples,
        disk=disk,
        fits=fits,
        mends=tuple(advice),
        warnings=tuple(warnings),
    )


def _checkpoint(found: Assessment) -> float:
    """Bytes of one checkpoint: what is trained, its moments and average, and what moves with it."""
    kept = (r for r in found.networks if r.trained or r.moving)
    return sum(sum(r.states(found.setting).values()) for r in kept)
