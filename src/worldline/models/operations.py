"""Multiply-adds of a transformer's forward, by formula, from its sizes alone: those of matrix products, as `FlopCounterMode`
counts them (an operation is half of one multiply-add); norms, activations and RoPE are left out.
"""

from __future__ import annotations

from worldline.models.hunyuan15 import HunyuanConfig
from worldline.models.hunyuan15.config import BYT5, IMAGE, QWEN
from worldline.models.registry import BackboneConfig
from worldline.nn.camera import FEW


def forward_products(
    config: BackboneConfig, frames: int, tokens: int, pairs: int, *, cameras: bool = True
) -> tuple[float, float]:
    """(all, attention's own) of one sample: `frames` latent frames of `tokens` tokens; pairs: (frame, frame it sees)."""
    D, layers, L = config.dim, config.num_layers, frames * tokens
    camera = config.camera if cameras else "none"
    patch = config.patch_size[1] * config.patch_size[2]
    attention, seen = 2.0 * D * pairs * tokens * tokens, config.text_len
    frame = float((config.freq_dim + D) * D)  # the clock
    linear = 0.0  # a token and layer
    if camera in ("branch", "fused"):
        dims = config.head_dim if tokens * D < FEW else config.camera_dims
        linear += 4 * config.num_heads * dims**2  # a head's matrix on q, k, v and the output
    if cameras and config.motion:
        frame += (6 + D) * D
    if cameras and config.actions:
        frame += (config.actions + D) * D
    if isinstance(config, HunyuanConfig):
        # q k v o and the feed-forward; the prompt is among what queries see. A frame's modulation is each layer's own.
        linear += 4 * D * D + 2 * D * config.ffn_dim
        frame += 6 * D * D * layers + 2 * D * D
        embed = (2 * config.in_channels + 1) * patch * D
        attention += 2 * D * L * seen
        if camera == "branch":
            linear, attention = linear + D * D, 2 * attention
        extra = 0.0
        if config.text_mode == "joint":
            extra, more = _stream(config, config.text_len + L)
            attention += more / layers
    else:
        # q k v o of self-attention, q o of cross-attention, the feed-forward; six modulations for all layers.
        linear += 6 * D * D + 2 * D * config.ffn_dim
        frame += 6 * D * D
        embed, extra = config.in_channels * patch * D, 0.0
        if camera == "branch":
            linear, attention = linear + D * D, 2 * attention
        if camera == "plucker":
            embed += 6 * patch * D
        if camera == "cross":  # four tokens a frame, and a second cross-attention
            linear, seen = linear + 2 * D * D, seen + 4
            frame += 4 * (4 + D) * D + 4 * layers * 2 * D * D
        attention += 2 * D * L * seen
    outside = L * (embed + D * config.out_channels * patch) + frames * frame
    return layers * (L * linear + attention) + outside + extra, layers * attention


def prompt_products(config: BackboneConfig) -> float:
    """Of embedding one prompt, and its keys and values for every layer."""
    D = config.dim
    if not isinstance(config, HunyuanConfig):
        return float(config.text_len * (config.text_dim * D + D * D + config.num_layers * 2 * D * D))
    _, quoted, image = (config.text_lens[source] for source in (QWEN, BYT5, IMAGE))
    h = config.byt5_hidden
    others = quoted * (config.byt5_dim * h + h * h + h * D) + image * (config.image_dim**2 + config.image_dim * D)
    if config.text_mode == "joint":
        return float(others)  # the rest changes with the noise level
    linear, attention = _stream(config, config.text_len)
    return others + linear + attention


def _stream(config: HunyuanConfig, seen: int) -> tuple[float, float]:
    """(all but attention, attention in the blocks) of the prompt's stream, whose tokens see `seen` tokens."""
    D, L, words = config.dim, config.text_len, config.text_lens[QWEN]
    refined = words * config.text_dim * D + (config.text_dim + D + config.freq_dim + D) * D
    refined += config.refiner_layers * (
        words * (4 * D * D + 2 * D * config.refiner_ffn_dim) + 2 * D * words**2 + 2 * D * D
    )
    block = L * (4 * D * D + 2 * D * config.ffn_dim) + 6 * D * D
    clock = (config.freq_dim + D) * D
    return float(refined + config.num_layers * block + clock), 2.0 * D * L * seen * config.num_layers
