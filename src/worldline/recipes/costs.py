"""What a video transformer costs, from its sizes alone: operations by formula, memory kept for backward by tracing.

Operations are those of matrix products (a multiplication and an addition are two), as `FlopCounterMode` counts them; norms,
activations and RoPE are left out. Tracing runs the real forward on fake tensors: shapes only, no values, no memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from worldline.functional.camera import cameras_of
from worldline.functional.masks import Visibility
from worldline.models.frugal import halve_frozen
from worldline.models.lora import LoRARole
from worldline.models.operations import forward_products, prompt_products
from worldline.models.registry import BackboneConfig, build_backbone
from worldline.nn.attention import FrameMask
from worldline.recipes.networks import add_adapter
from worldline.recipes.schema import LoRASection
from worldline.schema import TextEmbedding


@dataclass(frozen=True)
class Pass:
    """Operations of a forward, and how many of them are attention's (which has no weights)."""

    flops: float
    attention: float = 0.0

    def __add__(self, other: Pass) -> Pass:
        return Pass(self.flops + other.flops, self.attention + other.attention)

    def __mul__(self, times: float) -> Pass:
        return Pass(self.flops * times, self.attention * times)

    def trained(self, *, lora: bool = False, recompute: bool = False) -> float:
        """With its backward: two products for one, but only the one for inputs where weights are frozen; and the forward
        again where activations were not kept."""
        backward = self.flops + self.attention if lora else 2 * self.flops
        return self.flops * (2 if recompute else 1) + backward


def adapter_parameters(config: BackboneConfig, lora: LoRASection) -> int:
    """Parameters of one adapter."""
    with torch.device("meta"):
        model = add_adapter(build_backbone(config), lora, "counted")
    return sum(p.numel() for p in LoRARole(model, "counted").parameters())


@lru_cache(maxsize=64)
def parameters(config: BackboneConfig) -> tuple[int, int]:
    """(all parameters, those in matrices inside blocks, which `muon` takes)."""
    with torch.device("meta"):
        model = build_backbone(config)
    named = list(model.named_parameters())
    return sum(p.numel() for _, p in named), sum(p.numel() for k, p in named if p.ndim == 2 and "blocks." in k)


def forward_flops(config: BackboneConfig, frames: int, tokens: int, pairs: int, *, cameras: bool = True) -> Pass:
    """One forward of one sample: `frames` latent frames of `tokens` tokens; `pairs` counts (frame, frame it sees)."""
    products, attention = forward_products(config, frames, tokens, pairs, cameras=cameras)
    return Pass(2.0 * products, 2.0 * attention)


def prompt_flops(config: BackboneConfig) -> Pass:
    """Embedding one prompt, and its keys and values for every layer."""
    return Pass(2.0 * prompt_products(config))


@dataclass(frozen=True)
class Kept:
    """Bytes that a training forward keeps until backward, and that its backward takes on top."""

    fixed: float = 0.0  # whatever the batch: weights as autocast rounded them, outside the blocks
    fixed_block: float = 0.0  # and of one block
    outside: float = 0.0  # a sample, outside the blocks
    block: float = 0.0  # a sample, in one block
    working: float = 0.0  # a sample: gradients under way in the block that backward is in

    def __add__(self, other: Kept) -> Kept:
        """Both at once, of one network: casts are made once, and backwards come one after the other."""
        outside, block = self.outside + other.outside, self.block + other.block
        fixed, fixed_block = max(self.fixed, other.fixed), max(self.fixed_block, other.fixed_block)
        return Kept(fixed, fixed_block, outside, block, max(self.working, other.working))

    def free(self, residual: float) -> float:
        """Bytes a sample of a pass that keeps nothing; residual: of a block's input."""
        return self.outside + residual + self.working

    def times(self, draws: int) -> Kept:
        """Of `draws` samples for one."""
        return replace(self, outside=draws * self.outside, block=draws * self.block, working=draws * self.working)


@lru_cache(maxsize=64)
def kept_for_backward(
    config: BackboneConfig,
    frames: int,
    height: int,
    width: int,
    *,
    cameras: bool = True,
    half: bool = True,
    forced: Visibility | None = None,
    lora: LoRASection | None = None,
    watched: bool = False,
) -> Kept:
    """What a training forward keeps until backward.

    height, width: of the latent grid; half: under bf16 autocast. forced: teacher forcing of 2 `frames`, with the copies of
    keys and values that the `blocks` backend of a CPU makes; None is one call in which all frames see each other, which keeps
    what fused kernels keep. lora: an adapter is trained on frozen weights. watched: the gradient of the cameras is taken too.
    """
    seen = [
        [
            _trace(replace(config, num_layers=n), frames, height, width, batch, cameras, half, forced, lora, watched)
            for batch in (1, 2)
        ]
        for n in (1, 2)
    ]
    (one, one_twice), (two, two_twice) = seen
    sample, block = one_twice - one, (two_twice - two) - (one_twice - one)
    fixed_block = two - one - block
    # In backward: the gradient of the residual stream, and of the hidden layer on both sides of its activation.
    tokens = (
        (frames if forced is None else 2 * frames) * height * width // (config.patch_size[1] * config.patch_size[2])
    )
    working = tokens * (4 * config.dim + 2 * (2 if half else 4) * config.ffn_dim)
    return Kept(max(one - sample - fixed_block, 0), fixed_block, max(sample - block, 0), block, working)


def _trace(
    config: BackboneConfig,
    frames: int,
    height: int,
    width: int,
    batch: int,
    cameras: bool,
    half: bool,
    forced: Visibility | None,
    lora: LoRASection | None,
    watched: bool,
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
        model = build_backbone(config)
        if lora is not None:
            model.requires_grad_(False)
            if half:
                halve_frozen(model)
            add_adapter(model, lora, "traced")
        x, sigma = torch.randn(batch, frames, config.in_channels, height, width), torch.rand(batch, frames)
        views = cameras_of(torch.eye(4).repeat(batch, frames, 1, 1), torch.ones(batch, frames, 4)) if cameras else None
        if views is not None and config.actions:
            views = replace(views, actions=torch.zeros(batch, frames, config.actions))
        if views is not None and watched:
            views = replace(views, w2c=views.w2c.requires_grad_(), motion=views.motion.requires_grad_())
        tokens = torch.randn(batch, config.text_len, config.text_dim)
        text = TextEmbedding(tokens, torch.ones(batch, config.text_len, dtype=torch.bool), "traced")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, half):
            model(x, sigma, model.whole_context(text), cameras=views, mask=mask)
        for p in model.parameters():
            kept.pop(p.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in kept.values())


def cache_bytes(config: BackboneConfig, frames: int, tokens: int, *, width: int = 2) -> int:
    """Keys and values of `frames` latent frames, `width` bytes a number; a camera branch keeps its own as well."""
    streams = 2 if config.camera == "branch" else 1
    return streams * config.num_layers * 2 * frames * tokens * config.dim * width
