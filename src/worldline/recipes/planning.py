"""What a recipe would cost, before anything is loaded: memory, operations, hours and disk of every training stage.

Memory is of one device that holds every network of a stage, as the trainer lays them out: fp32 weights, bf16 matrices of
frozen networks; gradients of the network a phase trains; optimizer moments and averages of all that are trained; what a
forward keeps for backward (traced) or block inputs where blocks are recomputed; keys and values of rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from worldline.functional.masks import Visibility
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.ode import ODEConfig
from worldline.models.wan import WanConfig
from worldline.models.wan_vae import WAN_VAE_VARIANTS
from worldline.recipes.costs import (
    Pass,
    adapter_parameters,
    cache_bytes,
    forward_flops,
    kept_for_backward,
    parameters,
    prompt_flops,
)
from worldline.recipes.devices import Device
from worldline.recipes.networks import sources
from worldline.recipes.schema import LoRASection, Recipe, StageSection
from worldline.schema import TimeGrid, WorldlineError

SMALLEST_BATCH = 16
"""minWM (arXiv:2605.30263) teaching camera control: batches under 4 fail, 8 are unstable, 16 work."""


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
    shards: int = 1  # devices that share weights, gradients and moments
    small_moments: bool = False  # 8-bit


@dataclass(frozen=True)
class Role:
    """A network of a stage, or the frozen base that several share."""

    name: str
    parameters: int
    matrices: int  # of those, in matrices inside blocks
    trained: bool
    moving: bool = False  # follows a trained one, in fp32

    def states(self, s: Setting) -> dict[str, float]:
        """Bytes that stay on the device: weights, optimizer, ema."""
        if not self.trained:
            saved = 2 * self.matrices if s.half and not self.moving else 0
            return {"weights": (4 * self.parameters - saved) / s.shards}
        moment = 1 if s.small_moments else 4
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
    kept: tuple[float, float] = (0.0, 0.0)  # for backward: bytes a sample outside blocks, and in one block
    working: float = 0.0  # bytes a sample of a pass without gradients
    cache: float = 0.0  # bytes a sample of a rollout's keys and values
    copies: float = 0.0  # bytes a sample of what each chunk's attention joins of them and keeps for backward
    residual: float = 0.0  # bytes a sample of one block's input


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. Bytes, operations, seconds."""

    name: str
    method: str
    roles: tuple[Role, ...]
    memory: dict[str, float]  # at the peak: weights, gradients, optimizer, ema, activations, caches
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
    notes: tuple[str, ...]

    @property
    def disk(self) -> float:
        """Bytes on disk at the end: encoded clips (where their number is known), checkpoints, models, trajectories."""
        encoded = (self.clips or 0) * (self.latent_bytes + self.text_bytes)
        return encoded + sum(sum(s.disk.values()) for s in self.stages)


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
    spatial = {v.latent_channels: v.spatial for v in WAN_VAE_VARIANTS.values()}.get(config.in_channels, 8)
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
        self.config: WanConfig = recipe.model.config(None if cameras else "none")
        self.clip, self.half = clip_of(recipe, section.latents), section.train.precision == "bf16"
        self.visibility = recipe.rollout.visibility()

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

    def kept(self, frames: int, forced: bool = False) -> tuple[float, float]:
        """Bytes kept for backward by a pass over `frames` (twice as many where forced)."""
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


def phases(costs: Costs) -> tuple[list[Phase], float]:
    """The updates of a stage, and its operations before the first step, for one sample."""
    T, section, prompt = costs.clip.frames, costs.section, costs.prompt
    options = section.options
    if section.method == "finetune":
        flops = costs.trained(costs.whole(T) + prompt)
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
        working = passes * (kept[1] + residual)
        return [train, Phase("trajectories", None, 0.0, working=working)], passes * options.euler_steps * forced.flops
    return [train], 0.0


def _dmd_phases(options: DMDConfig, costs: Costs) -> list[Phase]:
    T, prompt = options.latents or costs.clip.frames, costs.prompt
    if costs.clip.frames < T:
        raise WorldlineError(f"dmd: options.latents is {T}; the clips have {costs.clip.frames}")
    free, exits = costs.rollout(T)
    score, kept, residual = costs.whole(T) + prompt, costs.kept(T), costs.residual(T)
    held, copies = costs.caches(T)
    # The generator's update asks the real score twice, for guidance, and the fake one.
    return [
        Phase(
            "generator",
            "generator",
            free.flops + costs.trained(exits + prompt) + 3 * score.flops,
            every=options.critic_updates,
            kept=kept,
            cache=held,
            copies=copies,
            residual=residual,
            working=2 * kept[1],
        ),
        Phase(
            "critic",
            "fake",
            (free + exits + prompt).flops + costs.trained(score),
            kept=kept,
            residual=residual,
        ),
    ]


def roles(recipe: Recipe, section: StageSection, config: WanConfig) -> tuple[Role, ...]:
    """The networks of a stage, that whose weights it leaves first."""
    count, matrices = parameters(config)
    named = sources(section)
    if section.method == "ode":
        named.pop("teacher")  # let go of before training
    target = [("target", section.init)] if section.method == "consistency" else []
    lora = section.lora
    if lora is None:
        whole = [Role(role, count, matrices, trained) for role, (_, trained) in named.items()]
        return (*whole, *(Role(name, count, matrices, False, moving=True) for name, _ in target))
    size, found = adapter_parameters(config, lora), []
    on: dict[str, list[str]] = {}
    for role, (stage, trained) in named.items():
        root = recipe.lora_root(stage)
        on.setdefault(root, []).append(role)
        if trained or root != stage:
            found.append(Role(role, size, size, trained))
    found += [Role(name, size, 0, False, moving=True) for name, _ in target]
    return (*found, *(Role(f"base of {', '.join(names)}", count, matrices, False) for names in on.values()))


def memory(
    stage: tuple[Role, ...], updates: list[Phase], layers: int, s: Setting, teacher: float = 0.0
) -> tuple[dict[str, float], str]:
    """Bytes at the peak, by what they are, and the phase that has it. teacher: weights of one that solves trajectories."""
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
        gradients = sum(r.gradients(s) for r in stage if r.name == phase.role)
        outside, block = phase.kept
        kept = outside + (layers * phase.residual if s.recompute else layers * block + phase.copies)
        # Backward needs another block's worth at its height; so does a pass of a frozen network beside it.
        activations = s.batch * (kept + max(block, phase.working))
        at = {**states, "gradients": gradients, "activations": activations, "caches": s.batch * phase.cache}
        found.append((at, phase.name))
    return max(found, key=lambda item: sum(item[0].values()))


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
    notes = []
    if devices > 1:
        notes.append(
            f"training on {devices} devices together is not available yet (the trainer averages no gradients across "
            f"processes): these figures are for when it is; today use 1 device and {devices} times the accumulation"
        )
    if recipe.codec.path is None:
        notes.append("training the codec (stage codec) is not part of this plan")
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
        notes=tuple(notes),
    )


def clips_of(recipe: Recipe) -> int | None:
    """Encoded clips: those to be rendered, or those of the dataset; None where that is not there yet."""
    build = recipe.data.build
    if recipe.data.path is None:
        return (build.maps + build.heldout_maps) * build.clips_per_map
    info = Path(recipe.data.path) / "dataset.json"
    return int(json.loads(info.read_text())["clips"]) if info.is_file() else None


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
        trajectories=options.clips_per_batch if isinstance(options, ODEConfig) else 1,
        recompute=train.recompute,
        half=costs.half,
    )
    setting = replace(setting, **(changes or {}))
    updates, once = phases(costs)
    networks = roles(costs.recipe, section, config)
    count, matrices = parameters(config)
    teacher = Role("teacher", count, matrices, False).states(setting)["weights"]
    peak, phase = memory(networks, updates, config.num_layers, setting, teacher)
    return Assessment(networks, updates, once, setting, peak, phase)


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
    found = assess(costs)
    samples = train.batch_size * train.accumulation * devices
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
            f"(arXiv:2605.30263); set {_key(name)}.train.accumulation={ceil(SMALLEST_BATCH / (train.batch_size * devices))}"
        )
    advice = [] if fits else mends(name, costs, device, devices)
    if not fits and (shorter := _shorter(costs, device)):
        where = f"{_key(name)}.{'options.' if section.method == 'dmd' else ''}latents"
        advice.append(f"or --set {where}={shorter} (shorter clips, a shorter memory learnt)")
    return StagePlan(
        name=name,
        method=section.method if name != "base" else "pretraining",
        roles=found.networks,
        memory=found.memory,
        phase=found.phase,
        flops_per_step=per_step,
        once_flops=once,
        seconds=(per_step * train.steps + once) / (devices * device.tflops * 1e12 * utilisation),
        steps=train.steps,
        global_batch=samples,
        disk=disk,
        fits=fits,
        mends=tuple(advice),
        warnings=tuple(warnings),
    )


def _key(name: str) -> str:
    return "base" if name == "base" else f"stages.{name}"


def _shorter(costs: Costs, device: Device) -> int | None:
    """The most latent frames, two chunks at least, with which a stage fits; None where there are none."""
    whole, seen = costs.clip, costs.visibility
    low, high = 2, (whole.frames - seen.prefix) // seen.chunk - 1  # chunks
    best = None
    try:
        while low <= high:
            middle = (low + high) // 2
            costs.clip = replace(whole, frames=seen.prefix + middle * seen.chunk)
            if device.holds(assess(costs, {"batch": 1, "trajectories": 1}).peak):
                best, low = costs.clip.frames, middle + 1
            else:
                high = middle - 1
    finally:
        costs.clip = whole
    return best


def _checkpoint(found: Assessment) -> float:
    """Bytes of one checkpoint: what is trained, its moments and average, and what moves with it."""
    kept = (r for r in found.networks if r.trained or r.moving)
    return sum(sum(r.states(found.setting).values()) for r in kept)


@dataclass(frozen=True)
class Mend:
    """Something that takes less memory: another section, or (where no recipe can say it yet) another setting."""

    text: str
    section: Callable[[StageSection], StageSection] = lambda section: section
    setting: Mapping[str, Any] = field(default_factory=dict)


def mends(name: str, costs: Costs, device: Device, devices: int) -> list[str]:
    """What would make a stage fit, cheapest first: options of a recipe; where they do not do, what is not there yet."""

    def fits(changes: Iterable[Mend]) -> bool:
        section, setting = costs.section, dict[str, Any]()
        for change in changes:
            section, setting = change.section(section), setting | dict(change.setting)
        return device.holds(assess(costs.of(section), setting).peak)

    here, missing = _options(name, costs.section), _missing(devices)
    for some in _growing(here):
        if fits(some):
            return [m.text for m in some]
    for some in _growing(missing):
        if fits([*here, *some]):
            return [*(m.text for m in here), *(f"not available yet: {m.text}" for m in some)]
    far = "all of these do not make it fit: a larger device, more of them, smaller pictures or shorter clips"
    return [*(m.text for m in here), far]


def _growing(options: list[Mend]) -> Iterator[list[Mend]]:
    """Each alone, then the first two, three, ..."""
    yield from ([m] for m in options)
    yield from (options[:n] for n in range(2, len(options) + 1))


def _options(name: str, section: StageSection) -> list[Mend]:
    """What a recipe can say."""
    key, train, options = _key(name), section.train, section.options

    def training(**changes: Any) -> Callable[[StageSection], StageSection]:
        return lambda s: replace(s, train=replace(s.train, **changes))

    found = []
    if train.batch_size > 1:
        more = train.accumulation * train.batch_size
        text = f"--set {key}.train.batch_size=1 --set {key}.train.accumulation={more}"
        found.append(Mend(text, training(batch_size=1, accumulation=more)))
    if isinstance(options, ODEConfig) and options.clips_per_batch > 1:
        one = replace(options, clips_per_batch=1)
        found.append(Mend(f"--set {key}.options.clips_per_batch=1", lambda s: replace(s, options=one)))
    if not train.recompute:
        found.append(Mend(f"--set {key}.train.recompute=true (a third more operations)", training(recompute=True)))
    if train.ema_decay:
        found.append(Mend(f"--set {key}.train.ema_decay=0 (keeps no averaged weights)", training(ema_decay=0.0)))
    if train.optimizer == "adamw":
        found.append(Mend(f"--set {key}.train.optimizer=muon (one moment, not two)", training(optimizer="muon")))
    if section.lora is None and name != "base":
        lora = LoRASection(rank=32, targets="all-linear")
        text = f"--set {key}.lora.rank=32 --set {key}.lora.targets=all-linear (adapters on frozen weights; wants a higher lr)"
        found.append(Mend(text, lambda s: replace(s, lora=lora)))
    return found


def _missing(devices: int) -> list[Mend]:
    """What the trainer cannot do yet."""
    several = devices if devices > 1 else 8
    return [
        Mend("8-bit moments", setting={"small_moments": True}),
        Mend(f"states sharded over {several} devices", setting={"shards": several}),
    ]
