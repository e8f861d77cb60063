"""What worlds of known sizes would do on this machine, from its measured rates: a roofline with the cost of small steps.

chunk = max(operations / rate of products at this many tokens, bytes / rate of memory) + calls and layers x what one of them
takes of a model too narrow to compute anything. On an accelerator the last term is of eager code; recorded, there is nearly
none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from worldline.functional.camera import cameras_of
from worldline.functional.masks import Visibility
from worldline.models.tiny_vae import TINY_VAE_VARIANTS
from worldline.models.wan import WAN_VARIANTS, WanConfig, WanModel
from worldline.rollout.loop import ChunkLoop
from worldline.rollout.plan import RolloutPlan
from worldline.schema import TextEmbedding
from worldline.stream.machine import Rates, best
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


@dataclass(frozen=True)
class Overhead:
    """Seconds of the small steps (norms, rotations, copies, Python) of one call of a model, and of each of its layers."""

    call: float
    layer: float


@torch.inference_mode()
def measure_overhead(device: torch.device, dtype: str) -> Overhead:
    """Stream models of one and of three layers that are too narrow for their arithmetic to matter."""
    one, three = (_narrow_chunk(layers, device, dtype) / 3 for layers in (1, 3))  # two steps and a commit
    layer = max((three - one) / 2, 0.0)
    return Overhead(max(one - layer, 0.0), layer)


def _narrow_chunk(layers: int, device: torch.device, dtype: str) -> float:
    config = WanConfig(
        dim=64, ffn_dim=64, num_heads=1, num_layers=layers, text_dim=16, text_len=8, camera="fused", motion=True
    )
    half = dtype == "bfloat16"
    model = WanModel(config).to(device).freeze(torch.bfloat16 if half else torch.float32)
    plan = RolloutPlan.few_step(Visibility(chunk=1, window=8, prefix=1), 2)
    text = TextEmbedding(torch.zeros(1, 8, 16, device=device), torch.ones(1, 8, dtype=torch.bool, device=device), "")
    latents = torch.randn(1, 1, 16, 8, 12, device=device)
    cameras = cameras_of(torch.eye(4, device=device).expand(1, 1, 4, 4), torch.ones(1, 1, 4, device=device))
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loop = ChunkLoop(model, plan, text, cache="ring")

        def chunk() -> None:
            loop.commit(loop.denoise(latents, cameras), cameras)

        for _ in range(9):
            chunk()
        return best(chunk, device, seconds=0.3)


def predict(
    name: str, model: WanConfig, codec: Any, config: WorldConfig, rates: Rates, overhead: Overhead, free: float, *,
    dtype: str = "bfloat16",
) -> Prediction:  # fmt: skip
    """codec: its config; free: bytes of memory there are."""
    plan = plan_of(model, codec, config, dtype)
    rows = plan.tokens_per_latent * plan.latents_per_chunk
    pixels = config.height * config.width // 16  # half way through a decoder that enlarges eight times or sixteen
    parts = {
        "products": (plan.denoise_flops + plan.commit_flops) / rates.product(rows, model.dim),
        "decoding": plan.decode_flops / rates.convolution(pixels),
        "memory": plan.bytes / rates.memory,
        "small steps": plan.calls * (overhead.call + model.num_layers * overhead.layer),
    }
    seconds = max(parts["products"] + parts["decoding"], parts["memory"]) + parts["small steps"]
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
