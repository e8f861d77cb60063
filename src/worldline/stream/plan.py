"""What a world costs to stream, before it is streamed: counted on a model without weights, so for any size on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from worldline.models.backbone import Backbone, TextContext
from worldline.models.codec import Codec
from worldline.models.registry import KINDS
from worldline.nn.kv_cache import RingCache
from worldline.schema import Cameras, TextEmbedding, WorldlineError
from worldline.stream.world import WorldConfig

M = TypeVar("M", Backbone, Codec)


@dataclass(frozen=True)
class StreamPlan:
    """Of one session, its window full. FLOPs count a multiplication and an addition as two; bytes are in the compute type.

    calls: model calls a chunk, the clean pass included, both prompts under guidance. denoise, commit, decode: of a chunk.
    bytes: read from memory a chunk at least, weights once a call and keys and values in sight. A device that multiplies at F
    FLOP/s and reads B bytes/s needs max(flops / F, bytes / B) seconds a chunk or more: `seconds`.
    """

    latents_per_chunk: int
    frames_per_chunk: int
    fps: float
    window: int
    sink: int
    steps: int
    calls: int
    tokens_per_latent: int
    cache_bytes: int
    text_bytes: int  # keys and values of the prompt
    weight_bytes: int
    codec_weight_bytes: int
    codec_state_bytes: int
    latent_bytes: int  # of a log, a chunk
    denoise_flops: float
    commit_flops: float
    decode_flops: float
    prompt_flops: float  # of a new prompt's keys and values, its encoder not counted

    @property
    def flops(self) -> float:
        """Of a whole chunk."""
        return self.denoise_flops + self.commit_flops + self.decode_flops

    @property
    def bytes(self) -> float:
        """Read for a chunk at least."""
        return self.calls * self.weight_bytes + self.calls / self.guided * self.cache_bytes + self.codec_weight_bytes

    @property
    def guided(self) -> int:
        """Passes a step."""
        return self.calls // (self.steps + 1)

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The least time of a chunk on a device with these rates."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)

    def realtime_flops(self) -> float:
        """FLOP/s that the world's own frame rate asks for."""
        return self.flops * self.fps / self.frames_per_chunk


def plan_of(model_config: Any, codec_config: Any, config: WorldConfig, dtype: str = "bfloat16") -> StreamPlan:
    """What a world of this shape costs. model_config, codec_config: of registered models; dtype: the compute type.

    What is counted are the passes of a session, through the models' own code, on tensors that have shapes and no values.
    Raises WorldlineError where a config is of no registered model.
    """
    visibility, half = config.visibility, dtype == "bfloat16"
    n = visibility.chunk
    with torch.device("meta"), torch.no_grad():
        codec = _kind(codec_config, Codec)(codec_config).eval()  # type: ignore[type-abstract]
        shape = (codec.latent_channels, config.height // codec.spatial, config.width // codec.spatial)
        latents = torch.empty(1, n, *shape)
        _, state = codec.decode_stream(latents[:, :1], None)
        with FlopCounterMode(display=False) as decoding:
            _, state = codec.decode_stream(latents, state)
    # Not on meta, for which there is no autocast.
    with FakeTensorMode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        model = _kind(model_config, Backbone)(model_config).eval()  # type: ignore[type-abstract]
        length, width = model.config.text_len, model.config.text_dim
        text = TextEmbedding(torch.empty(1, length, width), torch.empty(1, length, dtype=torch.bool))
        with FlopCounterMode(display=False) as prompts:
            context = model.whole_context(text)
        cache = RingCache(visibility, memory=0 if config.memory is None else config.memory.slots)
        cache.frames, cache.remembered = visibility.sink + 4 * cache.window, cache.memory
        cameras = Cameras(*(torch.empty(1, n, *s) for s in ((4, 4), (4,), (6,))))
        with FlopCounterMode(display=False) as one:
            model(torch.empty(1, n, *shape), torch.empty(1, n), context, cameras=cameras, cache=cache)
    return _plan(config, model, codec, cache, context, state, shape, half, prompts, one, decoding)


def _kind(config: Any, wanted: type[M]) -> type[M]:
    """The registered class of a config, a kind of `wanted`."""
    for cls, known in KINDS.values():
        if type(config) is known and issubclass(cls, wanted):
            return cls
    raise WorldlineError(f"config {type(config).__name__}; expected that of a registered {wanted.__name__}")


def _plan(
    config: WorldConfig, model: Backbone, codec: Codec, cache: RingCache, context: TextContext, state: Any,
    shape: tuple[int, int, int], half: bool, prompts: FlopCounterMode, one: FlopCounterMode, decoding: FlopCounterMode,
) -> StreamPlan:  # fmt: skip
    visibility, plan, n, size = config.visibility, config.plan, config.visibility.chunk, 2 if half else 4
    guided = 1 if plan.guidance == 1.0 else 2
    flops = guided * one.get_total_flops()
    state_bytes = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
    return StreamPlan(
        latents_per_chunk=n, frames_per_chunk=n * codec.grid.stride, fps=config.fps, window=cache.window,
        sink=visibility.sink, steps=len(plan.sigmas), calls=guided * (len(plan.sigmas) + 1),
        tokens_per_latent=model.tokens_per_frame(*shape[1:]), cache_bytes=guided * cache.nbytes,
        text_bytes=guided * sum(k.nbytes + v.nbytes for k, v in context.layers),
        weight_bytes=size * sum(p.numel() for p in model.parameters()),
        codec_weight_bytes=size * sum(p.numel() for name, p in codec.named_parameters() if "encode" not in name),
        codec_state_bytes=state_bytes, latent_bytes=size * n * shape[0] * shape[1] * shape[2],
        denoise_flops=float(flops * len(plan.sigmas)), commit_flops=float(flops),
        decode_flops=float(decoding.get_total_flops()), prompt_flops=float(guided * prompts.get_total_flops()),
    )  # fmt: skip
