"""What training the codec takes: its own forward and loss, traced on tensors without values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from worldline.methods.autoencoder import AutoencoderConfig, PixelBatch, autoencoder_loss
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.recipes.footprint import Role, Setting
from worldline.recipes.host import ALLOCATOR, RUNTIME, clips_of
from worldline.recipes.schema import Recipe


@dataclass(frozen=True)
class CodecNeeds:
    """A codec stage. Bytes by what they are at the peak, and which moment that is; operations of one sample."""

    role: Role
    setting: Setting
    memory: dict[str, float]
    phase: str
    flops: float


def codec_needs(recipe: Recipe, *, on_cpu: bool, batch: int, accumulation: int) -> CodecNeeds:
    """What a process needs that trains the recipe's codec on `batch` windows at once."""
    section, size = recipe.codec, recipe.data.video or recipe.data.build
    train = section.train
    with torch.device("meta"):
        count = sum(p.numel() for p in NanoVAE(section.model).parameters())
    role = Role("codec", count, 0, True)
    setting = Setting(batch, accumulation, train.ema_decay > 0, "adamw", moments=train.moments)
    half = train.precision == "bf16"
    (one, flops), (two, _) = (
        traced(section.model, section.options, n, section.frames, size.height, size.width, half) for n in (1, 2)
    )
    kept = one + (batch - 1) * (two - one)
    # The windows as numbers; when backward begins, the gradients of picture, error and differences. Those of weights come
    # while activations go.
    window = 4 * 4.0 * batch * 3 * section.frames * size.height * size.width
    training = {**role.states(setting), "activations": kept + window}
    if accumulation > 1:
        training["gradients"] = role.gradients(setting)
    if not on_cpu:
        return CodecNeeds(role, setting, training, "codec", flops)
    pixels = 3.0 * (clips_of(recipe, heldout=False) or 0) * size.frames * size.height * size.width
    beside = {"runtime": float(RUNTIME), "data": pixels, "allocator": ALLOCATOR * (kept + window)}
    loading = {"runtime": float(RUNTIME), "data": 2 * pixels}  # clip by clip, then all as one
    memory, phase = max((training | beside, "codec"), (loading, "loading"), key=lambda item: sum(item[0].values()))
    return CodecNeeds(role, setting, memory, phase, flops)


@lru_cache(maxsize=16)
def traced(
    config: NanoVAEConfig, options: AutoencoderConfig, batch: int, frames: int, height: int, width: int, half: bool
) -> tuple[float, float]:
    """(bytes that the loss of `batch` windows keeps for backward, operations with its backward, two products for one)."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    model, counter = NanoVAE(config), FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        video = torch.zeros(batch, frames, 3, height, width)
        some = PixelBatch(video, torch.zeros(batch, frames), torch.ones(4))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, half):
            autoencoder_loss(model, some, options, torch.Generator())
        for p in model.parameters():
            kept.pop(p.untyped_storage()._cdata, None)
        held = float(sum(storage.nbytes() for storage in kept.values()))
    return held, 3.0 * counter.get_total_flops()
