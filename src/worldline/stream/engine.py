"""Engine: a world's weights, ready to stream. One engine, many sessions.

engine = Engine.load("assets/nano/world")
session = engine.session("room-3", seed=7)
frames = session.step(controls)                    # uint8 [n, H, W, 3]
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worldline.models.backbone import Backbone
from worldline.models.codec import Codec
from worldline.models.image_cache import ImageEncoder
from worldline.models.registry import load_codec, load_model, weights_hash
from worldline.models.text import HashTextEncoder
from worldline.models.text_cache import TextEncoder
from worldline.nn.precision import inference_dtype
from worldline.nn.quant import Scheme, scheme_of
from worldline.nn.quant import quantise as quantise_layers
from worldline.rollout.compiled import Pass, Swapping
from worldline.rollout.graphs import Graphed
from worldline.rollout.history import CameraMemory
from worldline.schema import Controls, TextEmbedding, WorldlineError
from worldline.stream.moment import Moment
from worldline.stream.plan import StreamPlan, plan_of
from worldline.stream.session import Session
from worldline.stream.stages import begins
from worldline.stream.text import world_image_encoder, world_text_encoder
from worldline.stream.world import Start, WorldConfig, checked, read_starts

DType = Literal["auto", "float32", "bfloat16"]
MAX_PROMPT = 500  # characters
SNAPSHOT_BYTES = 256 << 20  # of keys and values that a session may keep for going back


@dataclass(frozen=True)
class Spec:
    """What a world is, for pages, logs and benchmarks. Latent and pixel counts are of one chunk."""

    name: str
    fps: float
    height: int
    width: int
    stride: int  # pixel frames a latent
    latents_per_chunk: int
    frames_per_chunk: int
    window: int  # latent frames of visible past, the chunk included
    steps: int  # model calls a chunk, without the commit
    turn_deg_per_frame: float
    max_turn_deg_per_frame: float
    parameters: int
    weights: str  # first digits of the weights' hash
    device: str
    dtype: str
    quantised: str  # int8, fp8 or none
    threads: int


class Engine:
    """Weights and codec on a device. Use `load`; sessions hold all that changes."""

    def __init__(
        self,
        model: Backbone,
        codec: Codec,
        config: WorldConfig,
        starts: dict[str, Start],
        *,
        name: str,
        weights: str,
        device: str = "cpu",
        dtype: DType = "auto",
        encoder: TextEncoder | None = None,
        images: ImageEncoder | None = None,
    ) -> None:
        """encoder: of prompts; None is that of the nano line, which needs no files. images: of start images, where the model
        reads them."""
        self.model, self.codec = model.to(device).eval(), codec.to(device).eval()
        self.config, self.starts = config, starts
        self.device = torch.device(device)
        self.dtype = dtype if dtype != "auto" else str(inference_dtype(self.device)).removeprefix("torch.")
        self.quantised = scheme_of(model) or "none"
        self.name, self.weights = name, weights
        self.parameters = sum(p.numel() for p in model.parameters())  # before weights are laid out for inference
        self.grid = codec.grid
        self.backbone: Backbone = (
            self.model
        )  # what sessions call: the model, or something quicker that computes the same
        self.compiling: Swapping | None = None
        self.snapshot_bytes = SNAPSHOT_BYTES
        self._plan: StreamPlan | None = None
        self._texts: dict[str, TextEmbedding] = {}
        self.encoder = encoder or HashTextEncoder(model.config.text_dim, model.config.text_len)
        self.images = images

    @staticmethod
    def load(
        world: str | Path,
        device: str = "cpu",
        dtype: DType = "auto",
        threads: int | None = None,
        warm: bool = True,
        quantise: Scheme | None = None,
        compile: bool = False,
        graphs: bool | None = None,
        memory: int | CameraMemory | None = None,
    ) -> Engine:
        """Load a world directory, laid out for inference.

        dtype: `auto` is bfloat16 where the device multiplies it natively, else float32.

        threads: CPU threads of the whole process; None measures one against all of this machine's and keeps the faster
        (a small world often loses more to waiting than it gains; results may differ in the last bits between counts).
        warm: run two chunks now, so that the first player does not pay for first calls.
        compile: compile the model in a thread of its own; sessions start at once and take it over when it is ready
        (`engine.compiling`). From then on the last bits of results may differ from those before.
        graphs: record the passes of a stream as CUDA graphs (`rollout.graphs`); None does so on CUDA, unless `compile` is
        asked for.
        memory: latent frames that a chunk recalls from beyond its window by what their cameras saw (`rollout.history`), or the
        whole policy; 0 is none, None is as the world says.
        quantise: `int8` or `fp8` linear layers, rounded now (`worldline.nn.quant`); a world saved so needs no asking.
        """
        directory = Path(world)
        config = WorldConfig.read(directory)
        if memory is not None:
            slots = memory if isinstance(memory, CameraMemory) else config.memory_of(memory)
            config = replace(config, memory=slots)
        begins("weights")
        model = load_model(directory)
        begins("codec")
        codec = load_codec(directory / config.codec)
        if not isinstance(model, Backbone):
            raise WorldlineError(f"{directory} holds a {type(model).__name__}; expected a video model")
        if codec.latent_channels != model.config.in_channels:
            raise WorldlineError(
                f"the codec's {codec.latent_channels} latent channels do not fit the world's "
                f"{model.config.in_channels}; point `codec` of {directory / 'world.json'} to the codec it was trained with"
            )
        starts = read_starts(directory / config.starts, config.height, config.width)
        if quantise is not None:
            begins("quantise")
            quantise_layers(model, quantise)
        engine = Engine(
            model,
            codec,
            config,
            starts,
            name=directory.resolve().parent.name,
            weights=weights_hash(directory),
            device=device,
            dtype=dtype,
            encoder=world_text_encoder(directory, config.text, model.config, torch.device(device)),
            images=world_image_encoder(directory, config.text, model.config, torch.device(device)),
        )
        engine.model.freeze(getattr(torch, engine.dtype))
        engine.codec.freeze(getattr(torch, engine.dtype))
        if graphs or (graphs is None and engine.device.type == "cuda" and not compile):
            engine.backbone = Graphed(model)
        if warm:
            begins("warm-up")
        if threads is not None:
            torch.set_num_threads(threads)
        elif engine.device.type == "cpu" and warm:
            engine._choose_threads()
        if warm:
            engine._time_chunks(2)
        if compile:
            engine.compile()
        return engine

    def compile(self, how: Callable[[Pass], Pass] | None = None, wait: bool = False) -> None:
        """Compile the model in a thread of its own; sessions that start from now on take it over when it
        is ready. how: what
        makes a compiled function (default: `torch.compile`, one graph). A failure is a CompileWarning and changes nothing."""
        if self.compiling is not None:
            return
        if wait:
            begins("compile")
        self.compiling = Swapping(self.backbone, how)
        self.backbone = self.compiling
        self.compiling.start(self._some_chunks, 1e-4 if self.dtype == "float32" else 3e-2, wait)

    def _some_chunks(self, model: Backbone) -> Tensor:
        """Latents of a walk on a full ring, through `model`."""
        blank = np.zeros((self.config.height, self.config.width, 3), np.uint8)
        with self.compute():
            moment, found = Moment.begin(self, blank, "", model), []
            for _ in range(self.config.chunks_to_fill + 2):
                drawn = moment.draw(Controls.still(self.frames_per_chunk), 0, 0)
                moment.camera, moment.chunks = drawn.camera, moment.chunks + 1
                moment.commit(drawn)
                found.append(drawn.latents)
            return torch.cat(found)

    def plan(self) -> StreamPlan:
        """What a chunk of this world costs: operations, memory, calls; the least time on a device of known rates."""
        if self._plan is None:
            self._plan = plan_of(self.model.config, self.codec.config, self.config, self.dtype)
        return self._plan

    @property
    def spec(self) -> Spec:
        """The facts of this world on this device."""
        c, visibility = self.config, self.config.visibility
        return Spec(
            name=self.name, fps=c.fps, height=c.height, width=c.width, stride=self.grid.stride,
            latents_per_chunk=visibility.chunk, frames_per_chunk=self.frames_per_chunk, window=visibility.window or 0,
            steps=len(c.sigmas), turn_deg_per_frame=c.turn_deg_per_frame,
            max_turn_deg_per_frame=c.max_turn_deg_per_frame,
            parameters=self.parameters, weights=self.weights, device=str(self.device),
            dtype=self.dtype, quantised=self.quantised, threads=torch.get_num_threads(),
        )  # fmt: skip

    @property
    def arithmetic(self) -> str:
        """How this engine computes, as far as it decides the last bits."""
        threads = f" with {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        eight = "" if self.quantised == "none" else f" and {self.quantised}"
        return f"{self.dtype}{eight} on {self.device.type}{threads}, PyTorch {torch.__version__}"

    @property
    def frames_per_chunk(self) -> int:
        """Pixel frames a step takes controls for and returns."""
        return self.config.visibility.chunk * self.grid.stride

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""
        c, cell = self.config, self.codec.spatial
        return self.codec.latent_channels, c.height // cell, c.width // cell

    def kept(self, latents: Tensor) -> Tensor:
        """Latents as a walk goes on with them, fp32: rounded to the compute type, in which the model reads them anyway, so that
        a log holds them exactly in half the bytes."""
        return latents.to(getattr(torch, self.dtype)).float()

    def stored(self, latents: Tensor) -> Tensor:
        """Kept latents [1, ...] as a log holds them: on the host, in the compute type, without the batch."""
        return latents[0].to(getattr(torch, self.dtype)).cpu()

    def session(self, image: np.ndarray | str | None = None, prompt: str | None = None, seed: int = 0) -> Session:
        """A new walk. image: uint8 [H, W, 3], the name of a start, or None for the first start. prompt: None takes the
        start's caption. The same image, prompt, seed and controls give the same frames."""
        if image is None:
            if not self.starts:
                raise WorldlineError("this world has no start images; pass image= as uint8 [H, W, 3]")
            image = next(iter(self.starts))
        if isinstance(image, str):
            if image not in self.starts:
                raise WorldlineError(f"start {image!r}; expected one of {sorted(self.starts)}")
            start = self.starts[image]
            image, prompt = start.image, start.caption if prompt is None else prompt
        return Session(self, checked(image, self.config.height, self.config.width), prompt or "", seed)

    def seen(self, image: np.ndarray) -> Tensor | None:
        """What the model is told of a start image uint8 [H, W, 3] beside its latent: tokens [1, N, W], the same at every call;
        None where this world takes none."""
        return None if self.images is None else self.images.encode([image]).to(self.device)

    def text(self, prompt: str, seen: Tensor | None = None) -> TextEmbedding:
        """The embedding of a prompt, encoded once, with the tokens of a start image. Raises WorldlineError on a prompt beyond
        all use."""
        if len(prompt) > MAX_PROMPT:
            raise WorldlineError(f"prompt of {len(prompt)} characters; expected at most {MAX_PROMPT}")
        if prompt not in self._texts:
            if len(self._texts) >= 256:  # a player's typing must not fill the memory
                self._texts.clear()
            found = self.encoder.encode([prompt]).to(self.device)
            if not torch.isfinite(found.tokens).all():
                raise WorldlineError(f"the encoder gave a non-finite embedding for {prompt[:60]!r}; check its weights")
            self._texts[prompt] = found
        return self._texts[prompt] if seen is None else self._texts[prompt].seeing(seen)

    @contextlib.contextmanager
    def compute(self) -> Iterator[None]:
        """Inference mode in the engine's compute type."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"),
        ):
            yield

    def _time_chunks(self, n: int) -> float:
        """Seconds of the fastest of n chunks of a throw-away session."""
        blank = np.zeros((self.config.height, self.config.width, 3), np.uint8)
        session, best = Session(self, blank, "", 0), float("inf")
        for _ in range(n):
            begin = time.perf_counter()
            session.step(Controls.still(self.frames_per_chunk))
            best = min(best, time.perf_counter() - begin)
        return best

    def _choose_threads(self) -> None:
        """Keep one thread where all of them are not at least a tenth faster."""
        many = torch.get_num_threads()
        if many == 1:
            return
        together = self._time_chunks(4)
        torch.set_num_threads(1)
        if together < 0.9 * self._time_chunks(4):
            torch.set_num_threads(many)
