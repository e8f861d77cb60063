"""What a video transformer costs, from its sizes alone: operations by formula, memory kept for backward by tracing.

Operations are those of matrix products (a multiplication and an addition are two), as `FlopCounterMode` counts them; norms,
activations and RoPE are left out. Tracing runs the real forward on fake tensors: shapes only, no values, no memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from worldline.functional.camera import cameras_of
from worldline.functional.masks import Visibility
from worldline.models.wan import WanConfig, WanModel
from worldline.nn.attention import FrameMask
from worldline.schema import TextEmbedding


def parameters(config: WanConfig) -> tuple[int, int]:
    """(all parameters, those in matrices inside blocks, which `muon` takes)."""
    with torch.device("meta"):
        model = WanModel(config)
    named = list(model.named_parameters())
    return sum(p.numel() for _, p in named), sum(p.numel() for k, p in named if p.ndim == 2 and "blocks." in k)


def forward_flops(config: WanConfig, frames: int, tokens: int, pairs: int, *, cameras: bool = True) -> float:
    """One forward of one sample: `frames` latent frames of `tokens` tokens; `pairs` counts (frame, frame it sees)."""
    D, Dh = config.dim, config.head_dim
    camera = config.camera if cameras else "none"
    patch = config.patch_size[1] * config.patch_size[2]
    L = frames * tokens
    # Multiply-adds a token and layer: q k v o of self-attention, q o of cross-attention, the feed-forward.
    linear = 6 * D * D + 2 * D * config.ffn_dim
    attention = 2 * D * pairs * tokens * tokens
    embed, frame = (
        config.in_channels * patch * D,
        (config.freq_dim + 7 * D) * D,
    )  # 7: the clock's second layer, 6 modulations
    if camera in ("branch", "fused"):
        linear += 4 * D * Dh  # a head's matrix on q, k, v and the output
    if camera == "branch":
        linear, attention = linear + D * D, 2 * attention
    if camera == "plucker":
        embed += 6 * patch * D
    seen = config.text_len
    if camera == "cross":  # four tokens a frame, and a second cross-attention
        linear, seen = linear + 2 * D * D, seen + 4
        frame += 4 * (4 + D) * D + 4 * config.num_layers * 2 * D * D
    if cameras and config.motion:
        frame += (6 + D) * D
    if cameras and config.actions:
        frame += (config.actions + D) * D
    layer = L * linear + attention + 2 * D * L * seen
    return 2.0 * (config.num_layers * layer + L * (embed + D * config.out_channels * patch) + frames * frame)


def prompt_flops(config: WanConfig) -> float:
    """Embedding one prompt, and its keys and values for every layer."""
    D = config.dim
    return 2.0 * config.text_len * (config.text_dim * D + D * D + config.num_layers * 2 * D * D)


@lru_cache(maxsize=64)
def kept_for_backward(
    config: WanConfig,
    frames: int,
    height: int,
    width: int,
    *,
    batch: int = 1,
    cameras: bool = True,
    half: bool = True,
    forced: Visibility | None = None,
) -> tuple[int, int]:
    """Bytes a training forward keeps until backward: (outside the blocks, in one block).

    height, width: of the latent grid; half: under bf16 autocast. forced: teacher forcing of 2 `frames`, with the copies of
    keys and values that the `blocks` backend of a CPU makes; None is one call in which all frames see each other, which keeps
    what fused kernels keep.
    """
    one, two = (
        _trace(replace(config, num_layers=n), frames, height, width, batch, cameras, half, forced) for n in (1, 2)
    )
    return max(2 * one - two, 0), two - one


def _trace(
    config: WanConfig,
    frames: int,
    height: int,
    width: int,
    batch: int,
    cameras: bool,
    half: bool,
    forced: Visibility | None,
) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    mask = None
    if forced is not None:
        patch = config.patch_size[1] * config.patch_size[2]
        mask = FrameMask(forced.teacher_forcing_mask(frames), height * width // patch, "blocks")
        frames *= 2
    with FakeTensorMode():
        model = WanModel(config)
        x, sigma = torch.randn(batch, frames, config.in_channels, height, width), torch.rand(batch, frames)
        views = cameras_of(torch.eye(4).repeat(batch, frames, 1, 1), torch.ones(batch, frames, 4)) if cameras else None
        if views is not None and config.actions:
            views = replace(views, actions=torch.zeros(batch, frames, config.actions))
        tokens = torch.randn(batch, config.text_len, config.text_dim)
        text = TextEmbedding(tokens, torch.ones(batch, config.text_len, dtype=torch.bool), "traced")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, half):
            model(x, sigma, model.text_context(text), cameras=views, mask=mask)
        for p in model.parameters():
            kept.pop(p.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in kept.values())


def cache_bytes(config: WanConfig, frames: int, tokens: int, *, width: int = 2) -> int:
    """Keys and values of `frames` latent frames, `width` bytes a number; a camera branch keeps its own as well."""
    streams = 2 if config.camera == "branch" else 1
    return streams * config.num_layers * 2 * frames * tokens * config.dim * width
