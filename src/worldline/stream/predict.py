"""What worlds of known sizes would do on this machine, from its measured rates: a roofline with the cost of small steps.

chunk = max(operations / rate of products at this many tokens, bytes / rate of memory) + operations on tensors x what a small
one costs. On an accelerator the last term is of uncompiled code; a recorded one has nearly none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from worldline.functional.masks import Visibility
from worldline.models.tiny_vae import TINY_VAE_VARIANTS
from worldline.models.wan import WAN_VARIANTS, WanConfig
from worldline.rollout.plan import RolloutPlan
from worldline.stream.machine import Rates
from worldline.stream.plan import StreamPlan, plan_of
from worldline.stream.world import WorldConfig

GIB = 2**30
WORKING = 0.15  # share of weights and cache that a pass needs besides, at least
RESERVED = 0.5 * GIB  # of the program and its libraries


@dataclass(frozen=True)
class Prediction:
    """chunk_s: of denoising, decoding and commit; parts: of it, seconds; memory: bytes."""

    name: str
    size: str
    fps: float
    native_fps: float
    chunk_s: float
    parts: dict[str, float]
    memory: float
    free: float

    @property
    def fits(self) -> bool:
        """Whether the memory that is free now holds it."""
        return self.memory <= self.free

    @property
    def realtime(self) -> bool:
        """Whether it keeps up with its own clock."""
        return self.fps >= self.native_fps


def predict(
    name: str, model: WanConfig, codec: Any, config: WorldConfig, rates: Rates, free: float, per_layer: float, *,
    dtype: str = "bfloat16",
) -> Prediction:  # fmt: skip
    """per_layer: operations on tensors in one layer of one pass, as counted on a model of this kind; codec: its config."""
    plan = plan_of(model, codec, config, dtype)
    rows = plan.tokens_per_latent * plan.latents_per_chunk
    passes = (plan.denoise_flops + plan.commit_flops) / rates.product(rows, model.dim)
    parts = {
        "products": passes + plan.decode_flops / rates.peak,
        "memory": plan.bytes / rates.memory,
        "small steps": per_layer * model.num_layers * plan.calls * rates.small,
    }
    seconds = max(parts["products"], parts["memory"]) + parts["small steps"]
    return Prediction(
        name, f"{config.width}x{config.height}", plan.frames_per_chunk / seconds, config.fps, seconds, parts,
        memory_of(plan), free,
    )  # fmt: skip


def memory_of(plan: StreamPlan) -> float:
    """Bytes of one session with its weights; a large text encoder, which may go once prompts are encoded, is not in it."""
    held = plan.weight_bytes + plan.codec_weight_bytes + plan.cache_bytes + plan.text_bytes + plan.codec_state_bytes
    return held * (1 + WORKING) + RESERVED


def _world(height: int, width: int, fps: float, chunk: int, window: int) -> WorldConfig:
    visibility = Visibility(chunk=chunk, window=window, prefix=1)
    return WorldConfig(
        visibility=visibility, sigmas=RolloutPlan.few_step(visibility, 4).sigmas, height=height, width=width, fps=fps,
        K=(0.5, 0.87, 0.5, 0.5), move_scale=1.0, walk_units_per_frame=1.0,
    )  # fmt: skip


def known_worlds() -> dict[str, tuple[WanConfig, Any, WorldConfig]]:
    """Backbones that recipes convert, at the sizes they are made for: four steps, fused cameras, the tiny decoder."""
    small, large = (replace(WAN_VARIANTS[name], camera="fused") for name in ("wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"))
    tiny, patched = TINY_VAE_VARIANTS["taew2_1"], TINY_VAE_VARIANTS["taew2_2"]
    return {
        "Wan 2.1 1.3B": (small, tiny, _world(480, 832, 16.0, 3, 12)),
        "Wan 2.2 5B, 480p": (large, patched, _world(480, 832, 24.0, 3, 12)),
        "Wan 2.2 5B, 720p": (large, patched, _world(704, 1280, 24.0, 4, 12)),
    }
