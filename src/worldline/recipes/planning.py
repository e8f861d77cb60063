"""What a recipe would cost, before anything is loaded: memory, operations, hours and disk of every training stage.

Memory is of one device that holds every network of a stage, as the trainer lays them out: fp32 weights, also of frozen
networks; gradients of the network a phase trains; optimizer moments and averages of all that are trained; what a forward
keeps for backward (traced, no recomputation); keys and values of rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from worldline.functional.masks import Visibility
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.ode import ODEConfig
from worldline.models.wan import WanConfig
from worldline.models.wan_vae import WAN_VAE_VARIANTS
from worldline.recipes.costs import cache_bytes, forward_flops, kept_for_backward, parameters, prompt_flops
from worldline.recipes.devices import Device
from worldline.recipes.schema import Recipe, StageSection
from worldline.schema import TimeGrid, WorldlineError
from worldline.train.config import TrainConfig

SMALLEST_BATCH = 16
"""minWM (arXiv:2605.30263) teaching camera control: batches under 4 fail, 8 are unstable, 16 work."""
LORA_SHARE = 0.02  # of the parameters, about rank 16


@dataclass(frozen=True)
class Setting:
    """What memory depends on beside the sizes. Defaults are the trainer as it is."""

    batch: int
    accumulation: int
    ema: bool
    optimizer: str
    trajectories: int = 1  # solved together (ode)
    checkpointing: bool = False  # keep block inputs alone, compute the rest again
    shards: int = 1  # devices that share weights, gradients and moments
    half_frozen: bool = False  # frozen networks in bf16
    small_moments: bool = False  # 8-bit
    lora: bool = False


@dataclass(frozen=True)
class Role:
    """A network of a stage."""

    name: str
    parameters: int
    matrices: int  # of those, in matrices inside blocks
    trained: bool

    def states(self, s: Setting) -> dict[str, float]:
        """Bytes that stay on the device: weights, optimizer, ema."""
        if not self.trained:
            return {"weights": self.parameters * (2 if s.half_frozen else 4) / s.shards}
        share = LORA_SHARE if s.lora else 1.0
        moment = 1 if s.small_moments else 4
        count = 2 * self.parameters - (self.matrices if s.optimizer == "muon" else 0)
        weights = self.parameters * (2 + 4 * share if s.lora else 4)
        return {
            "weights": weights / s.shards,
            "optimizer": share * count * moment / s.shards,
            "ema": share * 4 * self.parameters / s.shards if s.ema else 0.0,
        }

    def gradients(self, s: Setting) -> float:
        """Bytes of fp32 gradients while this role is trained."""
        return 4 * self.parameters * (LORA_SHARE if s.lora else 1.0) / s.shards


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
    text_bytes: int  # and of its prompt
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


def clip_of(recipe: Recipe) -> Clip:
    """From the recipe's picture size and the codec that has the model's latent channels. Raises WorldlineError."""
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
    frames = recipe.data.latents or encoded
    if frames > encoded:
        raise WorldlineError(f"data.latents is {frames}; clips of {video.frames} frames have {encoded} latents")
    rollout = recipe.rollout
    if recipe.stages and (frames - rollout.prefix) % rollout.chunk:
        near = rollout.prefix + (frames - rollout.prefix) // rollout.chunk * rollout.chunk
        raise WorldlineError(
            f"{frames} latents do not divide into a prefix of {rollout.prefix} and chunks of {rollout.chunk}; "
            f"set data.latents={near}"
        )
    return Clip(frames, height, width, height // ph * (width // pw), encoded)


class Costs:
    """What passes over a recipe's clip cost; one sample everywhere."""

    def __init__(self, recipe: Recipe, train: TrainConfig, cameras: bool, on_cpu: bool) -> None:
        self.recipe, self.cameras, self.on_cpu = recipe, cameras, on_cpu
        self.config: WanConfig = recipe.model.config(None if cameras else "none")
        self.clip, self.half = clip_of(recipe), train.precision == "bf16"
        self.visibility = recipe.rollout.visibility()

    def whole(self, frames: int) -> float:
        """A forward in which all frames see each other."""
        return self._forward(frames, frames * frames)

    def forced(self, frames: int) -> float:
        """A teacher-forced forward."""
        return self._forward(2 * frames, int(self.visibility.teacher_forcing_mask(frames).sum()))

    def _forward(self, frames: int, pairs: int) -> float:
        return forward_flops(self.config, frames, self.clip.tokens, pairs, cameras=self.cameras)

    @property
    def prompt(self) -> float:
        """Embedding a prompt."""
        return prompt_flops(self.config)

    def chunks(self, frames: int) -> Iterator[tuple[int, int]]:
        """(latent frames, frames they see) of every chunk of a rollout, a given prefix first."""
        start = 0
        while start < frames:
            stop = min(self.visibility.chunk_bounds(start)[1], frames)
            yield stop - start, len(self.visibility.visible_frames(start, stop))
            start = stop

    def rollout(self, frames: int) -> tuple[float, float]:
        """(a rollout's passes without gradients, its passes at the exit step). The exit step is uniform over the steps."""
        given, steps = self.visibility.prefix, self.recipe.rollout.steps
        chunks = [self._forward(n, n * seen) for n, seen in self.chunks(frames)]
        generated = chunks[1:] if given else chunks
        commits = sum(chunks[:-1])  # nothing follows the last chunk
        return commits + sum(generated) * (steps - 1) / 2, sum(generated)

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


def phases(section: StageSection, costs: Costs) -> tuple[list[Phase], float]:
    """The updates of a stage, and its operations before the first step. Backward counts as two forwards."""
    T, options, prompt = costs.clip.frames, section.options, costs.prompt
    if section.method == "finetune":
        return [
            Phase("flow", "model", 3 * (costs.whole(T) + prompt), kept=costs.kept(T), residual=costs.residual(T))
        ], 0.0
    if isinstance(options, DMDConfig):
        return _dmd_phases(options, costs), 0.0
    forced, kept, residual = costs.forced(T) + prompt, costs.kept(T, forced=True), costs.residual(2 * T)
    passes = 1 if getattr(options, "guidance", 1.0) == 1.0 else 2  # a guided teacher answers twice
    if isinstance(options, ConsistencyConfig):
        return [Phase("consistency", "model", (3 + passes + 1) * forced, kept=kept, residual=residual)], 0.0
    train = Phase(section.method, "model", 3 * forced, kept=kept, residual=residual)
    if isinstance(options, ODEConfig):
        working = passes * (kept[1] + residual)
        return [train, Phase("trajectories", None, 0.0, working=working)], passes * options.euler_steps * forced
    return [train], 0.0


def _dmd_phases(options: DMDConfig, costs: Costs) -> list[Phase]:
    T, prompt = options.latents or costs.clip.frames, costs.prompt
    if costs.clip.frames < T:
        raise WorldlineError(f"dmd: options.latents is {T}; the clips have {costs.clip.frames}")
    free, exits = costs.rollout(T)
    score, kept, residual = costs.whole(T) + prompt, costs.kept(T), costs.residual(T)
    held, copies = costs.caches(T)
    return [
        Phase(
            "generator",
            "generator",
            free + 3 * (exits + prompt) + 3 * score,  # the real score twice, for guidance, and the fake one
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
            free + exits + prompt + 3 * score,
            kept=kept,
            residual=residual,
        ),
    ]


def roles(section: StageSection, config: WanConfig) -> tuple[Role, ...]:
    """The networks of a stage."""
    count, matrices = parameters(config)
    named = {
        "finetune": (("model", True),),
        "teacher_forcing": (("model", True),),
        "ode": (("model", True),),  # the teacher is let go of before training
        "consistency": (("model", True), ("teacher", False), ("target", False)),
        "dmd": (("generator", True), ("real", False), ("fake", True)),
    }[section.method]
    return tuple(Role(name, count, matrices, trained) for name, trained in named)


def memory(stage: tuple[Role, ...], updates: list[Phase], layers: int, s: Setting) -> tuple[dict[str, float], str]:
    """Bytes at the peak, by what they are, and the phase that has it."""
    states: dict[str, float] = {"weights": 0.0, "gradients": 0.0, "optimizer": 0.0, "ema": 0.0}
    for role in stage:
        for kind, amount in role.states(s).items():
            states[kind] += amount
    found: list[tuple[dict[str, float], str]] = []
    for phase in updates:
        if phase.name == "trajectories":  # one frozen teacher, before there is anything else
            weights = stage[0].parameters * 4.0
            found.append(({"weights": weights, "activations": s.trajectories * phase.working}, phase.name))
            continue
        gradients = sum(r.gradients(s) for r in stage if r.name == phase.role)
        outside, block = phase.kept
        kept = outside + (layers * phase.residual if s.checkpointing else layers * block + phase.copies)
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
        base = StageSection(method="finetune", options=recipe.base.options, train=recipe.base.train)
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
        text_bytes=4 * config.text_len * config.text_dim,
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
    costs = Costs(recipe, train, cameras=name != "base", on_cpu=device.name == "cpu")
    updates, once = phases(section, costs)
    networks = roles(section, costs.config)
    ode = options if isinstance(options, ODEConfig) else None
    setting = Setting(
        train.batch_size, train.accumulation, train.ema_decay > 0, train.optimizer, ode.clips_per_batch if ode else 1
    )
    layers = costs.config.num_layers
    peak, phase = memory(networks, updates, layers, setting)
    samples = train.batch_size * train.accumulation * devices
    per_step = samples * sum(p.flops / p.every for p in updates)
    solved = min(ode.clips, clips or ode.clips) if ode else 0
    once *= solved
    disk = {
        "checkpoints": train.keep * _checkpoint(networks, setting, section.method),
        "model": 4.0 * networks[0].parameters,
    }
    if ode:
        disk["trajectories"] = solved * (ode.steps + 1) * costs.clip.frames * latent / 2  # fp16
    fits = device.holds(sum(peak.values()))
    warnings = []
    if samples < SMALLEST_BATCH:
        warnings.append(
            f"global batch {samples} is below {SMALLEST_BATCH}: minWM found camera control unstable at 8 and absent under 4 "
            f"(arXiv:2605.30263); set stages.{name}.train.accumulation={ceil(SMALLEST_BATCH / (train.batch_size * devices))}"
        )
    found = [] if fits else mends(name, networks, updates, layers, setting, device, devices)
    if not fits and (shorter := _shorter(costs, section, networks, setting, device)):
        where = f"stages.{name}.options.latents" if section.method == "dmd" else "data.latents"
        found.append(f"or --set {where}={shorter} (shorter clips, a shorter memory learnt)")
    return StagePlan(
        name=name,
        method=section.method if name != "base" else "pretraining",
        roles=networks,
        memory=peak,
        phase=phase,
        flops_per_step=per_step,
        once_flops=once,
        seconds=(per_step * train.steps + once) / (devices * device.tflops * 1e12 * utilisation),
        steps=train.steps,
        global_batch=samples,
        disk=disk,
        fits=fits,
        mends=tuple(found),
        warnings=tuple(warnings),
    )


def _shorter(costs: Costs, section: StageSection, networks: tuple[Role, ...], s: Setting, device: Device) -> int | None:
    """The most latent frames, two chunks at least, with which a stage fits; None where there are none."""
    whole, seen = costs.clip, costs.visibility
    low, high = 2, (whole.frames - seen.prefix) // seen.chunk - 1  # chunks
    best = None
    s = replace(s, batch=1, trajectories=1)
    while low <= high:
        middle = (low + high) // 2
        costs.clip = replace(whole, frames=seen.prefix + middle * seen.chunk)
        if device.holds(sum(memory(networks, phases(section, costs)[0], costs.config.num_layers, s)[0].values())):
            best, low = costs.clip.frames, middle + 1
        else:
            high = middle - 1
    costs.clip = whole
    return best


def _checkpoint(networks: tuple[Role, ...], s: Setting, method: str) -> float:
    """Bytes of one checkpoint: what is trained, its moments and average, and a consistency target."""
    trained = sum(sum(r.states(s).values()) for r in networks if r.trained)
    return trained + sum(4.0 * r.parameters for r in networks if r.name == "target" and method == "consistency")


@dataclass(frozen=True)
class Mend:
    """Something that takes less memory."""

    text: str
    changes: dict[str, Any]  # of Setting
    free: bool = False  # teaches the same


def mends(
    name: str,
    networks: tuple[Role, ...],
    updates: list[Phase],
    layers: int,
    setting: Setting,
    device: Device,
    devices: int,
) -> list[str]:
    """What would make a stage fit, cheapest first: options the recipe has; where they do not do, what is not available
    yet."""

    def fits(changes: Iterable[Mend]) -> bool:
        s = replace(setting, **{k: v for m in changes for k, v in m.changes.items()})
        return device.holds(sum(memory(networks, updates, layers, s)[0].values()))

    here, missing = _options(name, setting), _missing(devices)
    for some in _growing(here):
        if fits(some):
            return [m.text for m in some]
    free = [m for m in here if m.free]
    for some in _growing(missing):
        if fits([*free, *some]):
            return [*(m.text for m in free), *(f"not available yet: {m.text}" for m in some)]
    if fits([*here, *missing]):
        return [*(m.text for m in here), *(f"not available yet: {m.text}" for m in missing)]
    return ["nothing known here makes it fit: a larger device, more of them, smaller pictures or shorter clips"]


def _growing(options: list[Mend]) -> Iterator[list[Mend]]:
    """Each alone, then the first two, three, ..."""
    yield from ([m] for m in options)
    yield from (options[:n] for n in range(2, len(options) + 1))


def _options(name: str, s: Setting) -> list[Mend]:
    """What a recipe can say."""
    stage = "base" if name == "base" else f"stages.{name}"
    found = []
    if s.batch > 1:
        more = s.accumulation * s.batch
        changes = {"batch": 1, "accumulation": more}
        found.append(Mend(f"--set {stage}.train.batch_size=1 --set {stage}.train.accumulation={more}", changes, True))
    if s.trajectories > 1:
        found.append(Mend(f"--set {stage}.options.clips_per_batch=1", {"trajectories": 1}, True))
    if s.ema:
        found.append(Mend(f"--set {stage}.train.ema_decay=0 (keeps no averaged weights)", {"ema": False}))
    if s.optimizer == "adamw":
        found.append(Mend(f"--set {stage}.train.optimizer=muon (one moment, not two)", {"optimizer": "muon"}))
    return found


def _missing(devices: int) -> list[Mend]:
    """What the trainer cannot do yet."""
    several = devices if devices > 1 else 8
    return [
        Mend("activation checkpointing (a third more operations)", {"checkpointing": True}),
        Mend("frozen networks in bf16", {"half_frozen": True}),
        Mend("8-bit moments", {"small_moments": True}),
        Mend(f"states sharded over {several} devices", {"shards": several}),
        Mend("LoRA (rank 16) over bf16 weights", {"lora": True}),
    ]
