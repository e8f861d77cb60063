"""What a stage holds in memory and computes in a step, from its section of a recipe alone.

Memory is of one device that holds every network of a stage, as the trainer lays them out: fp32 weights, bf16 matrices of
frozen networks; gradients of the network a phase trains; optimizer moments and averages of all that are trained; what a
forward keeps for backward (traced) or block inputs where blocks are recomputed; keys and values of rollouts.
On a CPU the process's own memory comes to it (`host.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from worldline.functional.masks import Visibility
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.ode import ODEConfig
from worldline.models.hunyuan15_vae import HunyuanVAEConfig
from worldline.models.registry import BackboneConfig
from worldline.models.wan_vae import WAN_VAE_VARIANTS
from worldline.recipes.costs import (
    Kept,
    Pass,
    adapter_parameters,
    cache_bytes,
    forward_flops,
    kept_for_backward,
    parameters,
    prompt_flops,
)
from worldline.recipes.host import beside
from worldline.recipes.networks import sources
from worldline.recipes.schema import Recipe, StageSection
from worldline.recipes.teachers import described
from worldline.schema import TimeGrid, WorldlineError

NOTHING = Kept()


@dataclass(frozen=True)
class Setting:
    """What memory depends on beside the sizes. Defaults are the trainer as it is."""

    batch: int
    accumulation: int
    ema: bool
    optimizer: str
    trajectories: int = 1  # solved together (ode)
    recompute: bool = False  # keep block inputs alone, compute the rest again
    half: bool = True  # frozen matrices are kept in bf16
    computes_half: bool = True  # under bf16 autocast
    shards: int = 1  # devices that share weights, gradients and moments
    sequence: int = 1  # devices that share the tokens of a sample
    moments: str = "fp32"  # of adamw


@dataclass(frozen=True)
class Role:
    """A network of a stage, or the frozen base that several share."""

    name: str
    parameters: int
    matrices: int  # of those, in matrices inside blocks
    trained: bool
    moving: bool = False  # follows a trained one, in fp32
    whole: bool = False  # lies whole on every device, in the type it computes in

    def states(self, s: Setting) -> dict[str, float]:
        """Bytes that stay on the device: weights, optimizer, ema."""
        if self.whole:
            return {"weights": (2.0 if s.computes_half else 4.0) * self.parameters}
        if not self.trained:
            saved = 2 * self.matrices if s.half and not self.moving else 0
            return {"weights": (4 * self.parameters - saved) / s.shards}
        moment = 2 if s.moments == "bf16" else 4
        count = 2 * self.parameters - (self.matrices if s.optimizer == "muon" else 0)
        return {
            "weights": 4 * self.parameters / s.shards,
            "optimizer": count * moment / s.shards,
            "ema": 4 * self.parameters / s.shards if s.ema else 0.0,
        }

    def gradients(self, s: Setting) -> float:
        """Bytes of fp32 gradients while this role is trained."""
        return 4 * self.parameters / s.shards


@dataclass(frozen=True)
class Phase:
    """One kind of update of a stage."""

    name: str
    role: str | None  # trained; None where nothing is
    flops: float  # of one sample
    every: int = 1
    kept: Kept = NOTHING  # for backward
    working: float = 0.0  # bytes a sample of a pass without gradients
    cache: float = 0.0  # bytes a sample of a rollout's keys and values
    copies: float = 0.0  # bytes a sample of what each chunk's attention joins of them and keeps for backward
    residual: float = 0.0  # bytes a sample of one block's input


@dataclass(frozen=True)
class Clip:
    """The latent clip that training uses."""

    frames: int
    height: int
    width: int
    tokens: int  # a frame
    encoded: int  # latent frames of an encoded clip


def clip_of(recipe: Recipe, latents: int | None = None) -> Clip:
    """From the recipe's picture size and the codec that has the model's latent channels. latents: of a stage that trains
    on its own number. Raises WorldlineError."""
    config = recipe.model.config()
    hunyuan = HunyuanVAEConfig()
    cells = {v.latent_channels: v.spatial for v in WAN_VAE_VARIANTS.values()} | {
        hunyuan.latent_channels: hunyuan.spatial
    }
    spatial = cells.get(config.in_channels, 8)
    video = recipe.data.video or recipe.data.build
    _, ph, pw = config.patch_size
    if video.height % (spatial * ph) or video.width % (spatial * pw):
        raise WorldlineError(
            f"pictures of {video.height}x{video.width}: expected multiples of {spatial * ph} and {spatial * pw}, codec and "
            f"patches taken together (data.video)"
        )
    height, width = video.height // spatial, video.width // spatial
    encoded = TimeGrid().latent_frames(video.frames)
    frames = latents or recipe.data.latents or encoded
    if frames > encoded:
        raise WorldlineError(f"latents is {frames}; clips of {video.frames} frames have {encoded}")
    rollout = recipe.rollout
    if recipe.stages and (frames - rollout.prefix) % rollout.chunk:
        near = rollout.prefix + (frames - rollout.prefix) // rollout.chunk * rollout.chunk
        raise WorldlineError(
            f"{frames} latents do not divide into a prefix of {rollout.prefix} and chunks of {rollout.chunk}; "
            f"set latents to {near}"
        )
    return Clip(frames, height, width, height // ph * (width // pw), encoded)


class Costs:
    """What passes over a recipe's clip cost; one sample everywhere."""

    def __init__(self, recipe: Recipe, section: StageSection, cameras: bool, on_cpu: bool) -> None:
        self.recipe, self.section, self.cameras, self.on_cpu = recipe, section, cameras, on_cpu
        self.config: BackboneConfig = recipe.model.config(None if cameras else "none")
        self.clip, self.half = clip_of(recipe, section.latents), section.train.precision == "bf16"
        self.visibility = recipe.rollout.visibility()
        self.teachers = described(recipe, section)

    def of(self, section: StageSection) -> Costs:
        """The same for another section of this stage."""
        other = Costs(self.recipe, section, self.cameras, self.on_cpu)
        other.clip = self.clip
        return other

    def trained(self, one: Pass) -> float:
        """A pass and its backward."""
        return one.trained(lora=self.section.lora is not None, recompute=self.section.train.recompute)

    def whole(self, frames: int) -> Pass:
        """A forward in which all frames see each other."""
        return self._forward(frames, frames * frames)

    def forced(self, frames: int) -> Pass:
        """A teacher-forced forward."""
        return self._forward(2 * frames, int(self.visibility.teacher_forcing_mask(frames).sum()))

    def _forward(self, frames: int, pairs: int) -> Pass:
        return forward_flops(self.config, frames, self.clip.tokens, pairs, cameras=self.cameras)

    @property
    def prompt(self) -> Pass:
        """Embedding a prompt."""
        return prompt_flops(self.config)

    def real(self, frames: int) -> Pass:
        """A forward of the real score over a whole clip: this model's, or a diffusers transformer's (estimated from its
        parameters: each is multiplied once a token, and attention comes on top)."""
        teacher = self.teachers.get("real")
        if teacher is None:
            return self.whole(frames) + self.prompt
        pt, ph, pw = teacher.patch
        tokens = -(-frames // pt) * (self.clip.height // ph) * (self.clip.width // pw)
        layers = int(teacher.config.get("num_layers", self.config.num_layers))
        attention = 4.0 * layers * teacher.width * tokens * (tokens + self.config.text_len)
        return Pass(2.0 * tokens * teacher.parameters + attention, attention)

    @property
    def widest(self) -> float:
        """Width of the real score's tokens, in widths of this model's."""
        return max([1.0, *(teacher.width / self.config.dim for teacher in self.teachers.values())])

    def chunks(self, frames: int) -> Iterator[tuple[int, int]]:
        """(latent frames, frames they see) of every chunk of a rollout, a given prefix first."""
        start = 0
        while start < frames:
            stop = min(self.visibility.chunk_bounds(start)[1], frames)
            yield stop - start, len(self.visibility.visible_frames(start, stop))
            start = stop

    def rollout(self, frames: int) -> tuple[Pass, Pass]:
        """(a rollout's passes without gradients, its passes at the exit step). The exit step is uniform over the steps."""
        given, steps = self.visibility.prefix, self.recipe.rollout.steps
        chunks = [self._forward(n, n * seen) for n, seen in self.chunks(frames)]
        generated = chunks[1:] if given else chunks
        commits, exits = sum(chunks[:-1], Pass(0)), sum(generated, Pass(0))  # nothing follows the last chunk
        return commits + exits * ((steps - 1) / 2), exits

    def causal(self, frames: int) -> Pass:
        """A forward in which every frame sees its visible past and its chunk."""
        return self._forward(frames, int(self.visibility.frame_mask(frames).sum()))

    def kept(self, frames: int, forced: bool = False) -> Kept:
        """What a pass over `frames` (twice as many where forced) keeps for backward."""
        visibility: Visibility | None = self.visibility if forced and self.on_cpu else None
        frames = 2 * frames if forced and visibility is None else frames
        return kept_for_backward(
            self.config,
            frames,
            self.clip.height,
            self.clip.width,
            cameras=self.cameras,
            half=self.half,
            forced=visibility,
            lora=self.section.lora,
            watched=self.cameras and self.recipe.health.every > 0,
        )

    def residual(self, frames: int) -> float:
        """Bytes of one block's input."""
        return 4.0 * frames * self.clip.tokens * self.config.dim

    def caches(self, frames: int) -> tuple[float, float]:
        """(bytes of a rollout's keys and values, bytes of the copies that its chunks join of them)."""
        width = 2 if self.half else 4
        joined = sum(seen for n, seen in self.chunks(frames) if seen > n)
        held, copies = (cache_bytes(self.config, n, self.clip.tokens, width=width) for n in (frames, joined))
        return held, copies

    def longest_copy(self, frames: int) -> float:
        """Bytes of the copy of a rollout's keys and values that the chunk with the longest past joins."""
        longest = max((seen for n, seen in self.chunks(frames) if seen > n), default=0)
        return cache_bytes(self.config, longest, self.clip.tokens, width=2 if self.half else 4)


def phases(costs: Costs) -> tuple[list[Phase], float]:
    """The updates of a stage, and its operations before the first step, for one sample."""
    T, section, prompt = costs.clip.frames, costs.section, costs.prompt
    options = section.options
    if section.method == "finetune":
        flops = costs.trained(costs.whole(T) + prompt)
        return [Phase("flow", "model", flops, kept=costs.kept(T), residual=costs.residual(T))], 0.0
    if section.method == "diffusion_forcing":
        flops = costs.trained(costs.causal(T) + prompt)
        return [Phase("flow", "model", flops, kept=costs.kept(T), residual=costs.residual(T))], 0.0
    if isinstance(options, DMDConfig):
        return _dmd_phases(options, costs), 0.0
    forced, kept, residual = costs.forced(T) + prompt, costs.kept(T, forced=True), costs.residual(2 * T)
    passes = 1 if getattr(options, "guidance", 1.0) == 1.0 else 2  # a guided teacher answers twice
    if isinstance(options, ConsistencyConfig):
        flops = costs.trained(forced) + (passes + 1) * forced.flops
        return [Phase("consistency", "model", flops, kept=kept, residual=residual)], 0.0
    train = Phase(section.method, "model", costs.trained(forced), kept=kept, residual=residual)
    if isinstance(options, ODEConfig):
        working = passes * kept.free(residual)
        return [train, Phase("trajectories", None, 0.0, working=working)], passes * options.euler_steps * forced.flops
    return [train], 0.0


def _dmd_phases(options: DMDConfig, costs: Costs) -> list[Phase]:
    T, prompt = options.latents or costs.clip.frames, costs.prompt
    if costs.clip.frames < T:
        raise WorldlineError(f"dmd: options.latents is {T}; the clips have {costs.clip.frames}")
    free, exits = costs.rollout(T)
    score, kept, residual = costs.whole(T) + prompt, costs.kept(T), costs.residual(T)
    held, copies = costs.caches(T)
    generating = costs.trained(exits + prompt)
    made = T - costs.visibility.prefix
    rolled, rolled_residual = costs.kept(made), costs.residual(made)
    if options.chunkwise_backward:  # one chunk's activations; its exit step once more
        longest = max(n for n, _ in costs.chunks(T))
        rolled, rolled_residual, copies = costs.kept(longest), costs.residual(longest), costs.longest_copy(T)
        generating += exits.flops
    if options.regression_weight > 0:  # its graph stands beside the rollout's
        generating += costs.trained(costs.forced(T) + prompt)
        forced = costs.kept(T, forced=True)
        rolled, rolled_residual = rolled + forced, rolled_residual + costs.residual(2 * T)
    if options.gan_weight > 0:  # a forward of the teacher and its way back to the clip
        generating += 2 * score.flops
    draws, rolling = options.critic_draws, (free + exits + prompt).flops
    if options.share_rollout:
        rolling *= 1 - 1 / options.critic_updates
    judging = 2 + (options.gan.smoothness > 0)
    adversary = [Phase("discriminator", "discriminator", judging * score.flops, working=2 * kept.free(residual))]
    # The generator's update asks the real score twice, for guidance, and the fake one.
    return [
        Phase(
            "generator",
            "generator",
            free.flops + generating + 2 * costs.real(T).flops + score.flops,
            every=options.critic_updates,
            kept=rolled,
            cache=held,
            copies=copies,
            residual=rolled_residual,
            working=2 * kept.free(residual) * costs.widest,
        ),
        Phase(
            "critic",
            "fake",
            rolling + draws * costs.trained(score),
            kept=kept.times(draws),
            residual=draws * residual,
        ),
        *(adversary if options.gan_weight > 0 else []),
    ]


def roles(recipe: Recipe, section: StageSection, config: BackboneConfig) -> tuple[Role, ...]:
    """The networks of a stage, that whose weights it leaves first."""
    count, matrices = parameters(config)
    named = sources(section)
    if section.method == "ode":
        named.pop("teacher")  # let go of before training
    target = [("target", section.init)] if section.method == "consistency" else []
    foreign = [
        Role(f"{role} (diffusers)", teacher.parameters, teacher.parameters, False, whole=True)
        for role, teacher in described(recipe, section).items()
    ]
    lora = section.lora
    if lora is None:
        whole = [Role(role, count, matrices, trained) for role, (_, trained) in named.items()]
        return (*whole, *foreign, *(Role(name, count, matrices, False, moving=True) for name, _ in target))
    size, found = adapter_parameters(config, lora), []
    on: dict[str, list[str]] = {}
    for role, (stage, trained) in named.items():
        root = recipe.lora_root(stage)
        on.setdefault(root, []).append(role)
        if trained or root != stage:
            found.append(Role(role, size, size, trained))
    found += [Role(name, size, 0, False, moving=True) for name, _ in target]
    return (*found, *foreign, *(Role(f"base of {', '.join(names)}", count, matrices, False) for names in on.values()))


def memory(
    stage: tuple[Role, ...], updates: list[Phase], layers: int, s: Setting, teacher: float = 0.0
) -> tuple[dict[str, float], str]:
    """Bytes at the peak, by what they are, and the phase that has it. teacher: weights of one that solves trajectories."""
    return max(_moments(stage, updates, layers, s, teacher), key=lambda item: sum(item[0].values()))


def handled(stage: tuple[Role, ...], updates: list[Phase], layers: int, s: Setting) -> float:
    """Bytes of activations and caches that the phases of a step have had, each at its height."""
    height: dict[str, float] = {}
    for parts, name in _moments(stage, updates, layers, s, 0.0):
        height[name] = max(height.get(name, 0.0), parts["activations"] + parts.get("caches", 0.0))
    return sum(height.values())


def _moments(
    stage: tuple[Role, ...], updates: list[Phase], layers: int, s: Setting, teacher: float
) -> list[tuple[dict[str, float], str]]:
    """What is held at every moment that may be the peak."""
    states: dict[str, float] = {"weights": 0.0, "gradients": 0.0, "optimizer": 0.0, "ema": 0.0}
    for role in stage:
        for kind, amount in role.states(s).items():
            states[kind] += amount
    found: list[tuple[dict[str, float], str]] = []
    for phase in updates:
        if phase.name == "trajectories":  # one frozen teacher, before there is anything else
            weights = max(sum(r.states(s)["weights"] for r in stage if not r.trained), teacher)
            found.append(({"weights": weights, "activations": s.trajectories * phase.working}, phase.name))
            continue
        found += ((states | parts, phase.name) for parts in _heights(phase, stage, layers, s))
    return found


def _heights(phase: Phase, stage: tuple[Role, ...], layers: int, s: Setting) -> Iterator[dict[str, float]]:
    """What a phase holds beside the states when its backward begins and when it ends: activations give way to gradients."""
    kept, gradients = phase.kept, sum(r.gradients(s) for r in stage if r.name == phase.role)
    before = gradients if s.accumulation > 1 else 0.0  # of the micro batches before
    batch = s.batch / s.sequence
    # A recomputed block is there as a whole while backward is in it.
    block = kept.fixed_block + batch * kept.block
    last = block + batch * kept.working
    inside = layers * (kept.fixed_block + batch * kept.block) + batch * phase.copies
    first = batch * max(kept.working, phase.working)
    if s.recompute:
        inside, first = batch * layers * phase.residual, max(last, batch * phase.working)
    outside, caches = kept.fixed + batch * kept.outside, batch * phase.cache
    yield {"gradients": before, "activations": outside + inside + first, "caches": caches}
    yield {"gradients": gradients, "activations": outside + last, "caches": caches}


@dataclass(frozen=True)
class Assessment:
    """A stage as its section says it, and what it needs."""

    networks: tuple[Role, ...]
    updates: list[Phase]
    once: float  # operations before the first step, for one sample
    setting: Setting
    memory: dict[str, float]
    phase: str  # that has the peak

    @property
    def peak(self) -> float:
        """Bytes."""
        return sum(self.memory.values())


def assess(costs: Costs, changes: Mapping[str, Any] | None = None) -> Assessment:
    """What the stage of `costs` needs; changes: of its Setting, for what no recipe can say yet."""
    section, config = costs.section, costs.config
    train, options = section.train, section.options
    setting = Setting(
        train.batch_size,
        train.accumulation,
        train.ema_decay > 0,
        train.optimizer,
        moments=train.moments,
        trajectories=options.clips_per_batch if isinstance(options, ODEConfig) else 1,
        recompute=train.recompute,
        half=costs.half,
        computes_half=costs.half,
    )
    setting = replace(setting, **(changes or {}))
    updates, once = phases(costs)
    networks = roles(costs.recipe, section, config)
    count, matrices = parameters(config)
    teacher = Role("teacher", count, matrices, False).states(setting)["weights"]
    peak, phase = memory(networks, updates, config.num_layers, setting, teacher)
    if costs.on_cpu:
        clip, latent = costs.clip, 4 * costs.clip.height * costs.clip.width * config.in_channels
        peak |= beside(costs.recipe, latent, clip.encoded, handled(networks, updates, config.num_layers, setting))
    return Assessment(networks, updates, once, setting, peak, phase)
