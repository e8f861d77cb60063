"""The names that Wan's own files give to the tensors of its autoencoders (`Wan2.1_VAE.pth`, `Wan2.2_VAE.pth`).

Nothing but names differs. Wan2.1 counts the layers of all levels in one row, Wan2.2 within each level.
"""

from __future__ import annotations

import re

from worldline.models.wan_vae.config import WanVAEConfig

MARK = "decoder.middle.0.residual.0.gamma"  # in every such file and in no other

_IN_BLOCK = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
_WHOLE = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_LAYER = re.compile(r"(\d+)\.(?:resnets\.(\d+)|(?:down|up)sampler(?:s\.0)?)\.")


def original_name(key: str, config: WanVAEConfig) -> str:
    """Our name (diffusers') -> Wan's own.

    >>> original_name("decoder.up_blocks.1.upsamplers.0.time_conv.bias", WanVAEConfig((0.0,), (1.0,), 96, 96))
    'decoder.upsamples.7.time_conv.bias'
    """
    part, _, rest = key.partition(".")
    if part in _WHOLE:
        return f"{_WHOLE[part]}.{rest}"
    layer, _, rest = rest.partition(".")
    if layer in _ENDS:
        return f"{part}.{_ENDS[layer]}.{rest}"
    rest = re.sub(r"\b(norm[12]|conv[12])\.", lambda m: f"{_IN_BLOCK[m[1]]}.", rest).replace(
        "conv_shortcut", "shortcut"
    )
    if layer == "mid_block":
        return re.sub(r"^(\w+\.\d)\.", lambda m: f"{part}.middle.{_MIDDLE[m[1]]}.", rest)
    row = "downsamples" if part == "encoder" else "upsamples"
    blocks = config.blocks + (part == "decoder")  # residual blocks of a level; its step down or up comes after them

    def place(found: re.Match[str]) -> str:
        level, within = int(found[1]), blocks if found[2] is None else int(found[2])
        return f"{level}.{row}.{within}." if config.residual else f"{level * (blocks + 1) + within}."

    return f"{part}.{row}.{_LAYER.sub(place, rest, count=1)}"
