"""What a recipe says: data, codec, base, model, rollout, the stages of conversion, evaluation, the exported world."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any, Literal, get_type_hints

from worldline.data.build import DataConfig
from worldline.data.pose_noise import PoseNoise
from worldline.functional.masks import Visibility
from worldline.methods.autoencoder import AutoencoderConfig
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.diffusion_forcing import DiffusionForcingConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.finetune import FinetuneConfig
from worldline.methods.ode import ODEConfig
from worldline.methods.teacher_forcing import TeacherForcingConfig
from worldline.models.nano_vae import NanoVAEConfig
from worldline.models.registry import BackboneConfig, variant
from worldline.models.wan import CameraMode
from worldline.recipes.builder import Place, RecipeError, convert, did_you_mean
from worldline.rollout.history import CameraMemory
from worldline.schema import TimeGrid, WorldlineError
from worldline.train.config import TrainConfig
from worldline.train.health import HealthConfig
from worldline.train.parallel import LayoutConfig

Kind = Literal["finetune", "teacher_forcing", "diffusion_forcing", "ode", "consistency", "dmd"]
OPTIONS: dict[str, type] = {
    "finetune": FinetuneConfig,
    "teacher_forcing": TeacherForcingConfig,
    "diffusion_forcing": DiffusionForcingConfig,
    "ode": ODEConfig,
    "consistency": ConsistencyConfig,
    "dmd": DMDConfig,
}
# Networks a method needs besides the one it trains, and whether a stage must name them.
ROLES: dict[str, tuple[str, ...]] = {
    "finetune": (),
    "teacher_forcing": (),
    "diffusion_forcing": (),
    "ode": ("teacher",),
    "consistency": ("teacher",),
    "dmd": ("real", "fake"),
}
MULTI_STEP_CAUSAL = ("teacher_forcing", "diffusion_forcing")
ONE_SECOND = 16  # pixel frames
BUILT_IN = ("data", "episodes", "encode", "codec", "base", "world", "evaluate", "report")


@dataclass(frozen=True, kw_only=True)
class VideoSection:
    """The size of the clips of a dataset built before, so that a run can be planned where it is not."""

    height: int
    width: int
    frames: int  # pixel frames: 4 n + 1

    def __post_init__(self) -> None:
        TimeGrid().latent_frames(self.frames)
        if min(self.height, self.width) < 1:
            raise WorldlineError(f"video of {self.height}x{self.width} pixels; expected a picture")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Where clips come from, and how they are cut for training."""

    path: str | None = None  # a dataset built before; null builds one by `build`
    video: VideoSection | None = None  # of the clips at `path`; null is as `build` says
    build: DataConfig = field(default_factory=DataConfig)
    workers: int | None = None  # rendering processes; null is one a CPU core
    latents: int | None = None  # latent frames of a clip that training uses; null is all
    pose_noise: PoseNoise | None = None  # train on cameras as an estimator would have found them; null: exact ones


@dataclass(frozen=True, kw_only=True)
class CodecSection:
    """The video autoencoder: taken from `path`, or trained where `path` is null."""

    path: str | None = "bundled"
    init: str | None = None  # training goes on from these weights (`bundled`, or a model directory); null starts afresh
    model: NanoVAEConfig = field(default_factory=NanoVAEConfig)
    options: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    frames: int = 13  # pixel frames a training window: 4 n + 1


@dataclass(frozen=True, kw_only=True)
class BaseSection:
    """The bidirectional video model without camera control: taken from `path`, or pretrained where `path` is null."""

    path: str | None = "bundled"
    init: str | None = None  # pretraining goes on from these weights; null starts afresh
    latents: int | None = None  # the first latent frames of a clip that it trains on; null is as `data` says
    options: FinetuneConfig = field(default_factory=FinetuneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The backbone that is converted."""

    variant: str = "nano"
    camera: CameraMode = "fused"
    changes: dict[str, Any] = field(default_factory=dict)  # of the variant's fields, e.g. {num_layers: 4}

    def __post_init__(self) -> None:
        self.config()

    def config(self, camera: CameraMode | None = None) -> BackboneConfig:
        """The backbone's config; `camera` overrides how it takes cameras (`none` for the base)."""
        sizes, place = type(variant(self.variant)), Place("model", "changes")
        hints, names = get_type_hints(sizes), {f.name for f in fields_of(sizes)} - {"camera"}
        for key in self.changes:
            if key not in names:
                raise (place / key).error(f"unknown key; {did_you_mean(key, names)}")
        changes = {k: convert(hints[k], v, place / k) for k, v in self.changes.items()}
        camera = camera or self.camera
        if camera == "none":
            changes.update(motion=False, actions=0)
        return variant(self.variant, **{**changes, "camera": camera})


@dataclass(frozen=True, kw_only=True)
class TextSection:
    """Who reads the prompts."""

    kind: Literal["hash", "umt5", "hunyuan15"] = "hash"  # umt5: of Wan; both from files on this machine
    path: str | None = None  # a folder of weights: Wan's, in diffusers' or the original layout, or HunyuanVideo's
    cache: str | None = None  # folder of embeddings; null is one in the run directory
    images: bool = (
        False  # hunyuan15: also tell the model what SigLIP sees in the start image (the folder is of image to video)
    )

    def __post_init__(self) -> None:
        if self.images and self.kind != "hunyuan15":
            raise WorldlineError(
                f"text.images with kind {self.kind}; expected hunyuan15, whose models read start images"
            )
        if (self.kind == "hash") != (self.path is None):
            raise WorldlineError(
                f"text: kind {self.kind} {'has no' if self.kind == 'hash' else 'needs'} `path`, the folder of the text encoder "
                f"and tokenizer"
            )


@dataclass(frozen=True, kw_only=True)
class HistorySection(CameraMemory):
    """What chunks recall from beyond their window, and by which policy."""

    policy: Literal["camera_memory"] = "camera_memory"

    def memory(self) -> CameraMemory:
        """The policy alone."""
        return CameraMemory(**{f.name: getattr(self, f.name) for f in fields_of(CameraMemory)})


@dataclass(frozen=True, kw_only=True)
class RolloutSection:
    """How worlds unfold: every causal stage, the exported world and its evaluation agree on this."""

    chunk: int = 1  # latent frames generated together
    window: int | None = 12  # latent frames a chunk sees, itself included; null is all
    sink: int = 0  # first latent frames that stay visible
    prefix: int = 1  # given latent frames (the start image)
    steps: int = 4  # denoising steps of the few-step student
    guidance: float = 3.0  # of multi-step sampling
    multi_steps: int = 50  # denoising steps of multi-step sampling
    history: HistorySection | None = None  # null recalls nothing; else teacher_forcing and dmd stages train with it

    def memory(self) -> CameraMemory | None:
        """What chunks recall from beyond their window."""
        return None if self.history is None else self.history.memory()

    def visibility(self) -> Visibility:
        """Who sees whom."""
        return Visibility(chunk=self.chunk, window=self.window, sink=self.sink, prefix=self.prefix)


@dataclass(frozen=True, kw_only=True)
class LoRASection:
    """Train low-rank updates of frozen weights. Stages in a row go on with one adapter on one base, so that networks which
    come from the same stages share their weights; each stage still leaves a whole model."""

    rank: int = 16
    alpha: float | None = None  # strength: updates are scaled by alpha / rank; null is rank
    targets: tuple[str, ...] | str = "attention"  # or all-linear, or names such as [attn1.to_q, ffn.net.2]
    # Layers that are silent until they are trained (a camera branch's) belong to the targets, or they stay silent.


@dataclass(frozen=True, kw_only=True)
class DiffusersSection:
    """A frozen bidirectional transformer of a diffusers pipeline. It takes no cameras; it must share the run's latents and
    text encoder."""

    diffusers: str  # a local folder of the pipeline, or of its transformer
    per_frame: bool | None = None  # whether frames may differ in noise level; null is as its pipeline says (Wan2.2 5B)


@dataclass(frozen=True, kw_only=True)
class ValidateSection:
    """Measure a stage's averaged weights every so often while it trains, and keep the best. Changes nothing that is learnt."""

    every: int = 0  # steps between measurements, the last step is one in any case; 0 never measures
    metric: Literal["yaw_corr", "yaw_gain_error", "cross_talk_size", "psnr", "camera_use"] = "yaw_corr"
    take: Literal["last", "best"] = "last"  # which weights the stage leaves; the others are kept beside them
    episodes: int = 4  # of either suite, on maps that neither training nor evaluation uses
    steps: int = 8  # denoising steps of multi-step models
    seed: int = 1  # of the episodes and the noise

    def __post_init__(self) -> None:
        if self.every < 0 or min(self.episodes, self.steps) < 1:
            raise WorldlineError(f"validate: {self}: expected every >= 0, episodes >= 1 and steps >= 1")
        if self.take == "best" and not self.every:
            raise WorldlineError("validate.take is best, validate.every 0; expected every >= 1, or take: last")

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which way the metric is good."""
        return "lower" if self.metric in ("yaw_gain_error", "cross_talk_size") else "higher"


@dataclass(frozen=True, kw_only=True)
class StageSection:
    """One stage of the conversion. `options` are those of its method. A role is an earlier stage, `base`, or, where it
    has a slash, a model directory; `real` may be a diffusers transformer as well."""

    method: Kind
    init: str = "base"  # whose weights it starts from
    teacher: str | None = None  # multi-step causal model (ode, consistency)
    real: str | DiffusersSection | None = None  # multi-step model whose score is the target (dmd)
    fake: str | None = None  # model the fake score starts from (dmd)
    latents: int | None = None  # the first latent frames of a clip that it trains on; null is as `data` says
    options: Any = None
    lora: LoRASection | None = None  # null trains all weights
    train: TrainConfig = field(default_factory=TrainConfig)
    validate: ValidateSection | None = None  # null is as the recipe says

    @staticmethod
    def variant_types(data: Mapping[str, Any], place: Place) -> dict[str, type]:
        """`method` decides the type of `options`."""
        method = data.get("method")
        if method not in OPTIONS:
            raise (place / "method").error(f"{method!r} is not a method; {did_you_mean(str(method), OPTIONS)}")
        return {"options": OPTIONS[method]}

    def __post_init__(self) -> None:
        for role in ("teacher", "real", "fake"):
            named, needed = getattr(self, role) is not None, role in ROLES[self.method]
            if named != needed:
                raise WorldlineError(f"method {self.method} {'needs' if needed else 'has no'} `{role}`")
        if self.foreign() and getattr(self.options, "gan_weight", 0) > 0:
            raise WorldlineError(
                "gan_weight needs a `real` of this package, whose features it reads; expected a stage or a converted "
                "checkpoint (worldline convert), or gan_weight 0"
            )

    def roles(self) -> dict[str, str]:
        """Role -> the stage or model directory it comes from."""
        named = {role: getattr(self, role) for role in ("teacher", "real", "fake")}
        return {"init": self.init, **{role: stage for role, stage in named.items() if isinstance(stage, str)}}

    def foreign(self) -> dict[str, DiffusersSection]:
        """Role -> the diffusers transformer it is."""
        return {"real": self.real} if isinstance(self.real, DiffusersSection) else {}


def is_directory(source: str) -> bool:
    """Whether a role's source is a model directory: names of stages have no slash."""
    return "/" in source


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """What is measured after every model stage and at the end, on maps no training set may use."""

    episodes: int = 4  # of either suite: turning on the spot, and walking; 0 measures nothing
    seed: int = 0
    spin_frames: int = 96  # pixel frames of a turning episode after its start
    walk_frames: int = 44  # and of a walking one
    stages: bool = True  # measure after every model stage
    latency: bool = True  # first-frame latency of the three kinds of model
    latency_steps: int = 50  # denoising steps of the multi-step models there
    latency_latents: int = 20  # latent frames of the bidirectional clip there: 77 pixel frames, as minWM times it

    def __post_init__(self) -> None:
        if self.episodes < 0 or min(self.spin_frames, self.walk_frames) < ONE_SECOND:
            raise WorldlineError(
                f"evaluate: {self.episodes} episodes of {self.spin_frames} and {self.walk_frames} frames; expected "
                f"at least 0 episodes, and {ONE_SECOND} frames to measure at one second"
            )

    @property
    def every_stage(self) -> bool:
        """Whether anything is measured after every model stage."""
        return self.stages and self.episodes > 0


@dataclass(frozen=True, kw_only=True)
class WorldSection:
    """The exported world directory."""

    starts: int = 8  # start images, from held-out maps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run as a value."""

    name: str
    about: str = ""  # one line for `worldline recipes`
    seed: int = 0
    data: DataSection = field(default_factory=DataSection)
    codec: CodecSection = field(default_factory=CodecSection)
    base: BaseSection = field(default_factory=BaseSection)
    model: ModelSection = field(default_factory=ModelSection)
    text: TextSection = field(default_factory=TextSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    stages: dict[str, StageSection] = field(default_factory=dict)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    validate: ValidateSection = field(default_factory=ValidateSection)  # of stages that say nothing of their own
    health: HealthConfig = field(default_factory=HealthConfig)  # of all stages; changes nothing that is learnt
    layout: LayoutConfig = field(default_factory=LayoutConfig)  # of all stages over processes; nor does this
    world: WorldSection = field(default_factory=WorldSection)

    def validation(self, stage: str) -> ValidateSection | None:
        """How a stage is measured while it trains; None where it is not. The base takes no cameras: it is not."""
        if stage not in self.stages:
            return None
        section = self.stages[stage].validate or self.validate
        return section if section.every else None

    def lora_root(self, stage: str) -> str:
        """The stage whose weights are the frozen base of a stage's adapter; the stage itself where it has none."""
        while stage in self.stages and self.stages[stage].lora is not None:
            stage = self.stages[stage].init
        return stage

    def __post_init__(self) -> None:
        if self.text.images and self.rollout.prefix != 1:
            raise RecipeError(
                f"text.images with rollout.prefix {self.rollout.prefix}; expected 1: what is read is the first frame, given"
            )
        before = ["base"]
        for name, stage in self.stages.items():
            if name in BUILT_IN or not re.fullmatch(r"[a-z0-9_]+", name):
                raise RecipeError(f"stages.{name}: expected a-z, 0-9, _ and none of {', '.join(BUILT_IN)}")
            for role, source in stage.roles().items():
                if source not in before and not is_directory(source):
                    raise RecipeError(
                        f"stages.{name}.{role}: no earlier stage '{source}'; {did_you_mean(source, before)}, "
                        f"or a model directory (with a slash)"
                    )
            if isinstance(stage.options, ODEConfig) and stage.options.steps != self.rollout.steps:
                raise RecipeError(
                    f"stages.{name}.options.steps is {stage.options.steps}, rollout.steps is {self.rollout.steps}; "
                    f"expected the same: a student learns the levels it will be asked at"
                )
            parent = self.stages.get(stage.init)
            if stage.lora is not None and parent is not None and parent.lora not in (None, stage.lora):
                raise RecipeError(
                    f"stages.{name}.lora is {stage.lora}, that of {stage.init} is {parent.lora}; expected the same: a stage "
                    f"goes on with the adapter it starts from"
                )
            before.append(name)
