"""The prompt encoders that backbones were pretrained with, by name, from folders on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from worldline.models.hunyuan15 import HunyuanConfig
from worldline.models.hunyuan15.config import IMAGE
from worldline.models.hunyuan15_image import HunyuanImageEncoder
from worldline.models.hunyuan15_text import HunyuanTextEncoder
from worldline.models.registry import BackboneConfig
from worldline.models.text_cache import TextEncoder
from worldline.models.umt5 import UMT5Encoder
from worldline.schema import WorldlineError

Reader = Literal["umt5", "hunyuan15"]


def open_reader(
    kind: Reader, folder: str | Path, config: BackboneConfig, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The encoder of a folder, for prompts of `config`'s model; its weights load at the first prompt and are let go after.
    Raises WorldlineError where it is another family's, or its files are missing or do not fit."""
    family = "hunyuan15" if isinstance(config, HunyuanConfig) else "umt5"
    if kind != family:
        raise WorldlineError(f"text encoder {kind!r} for a {type(config).__name__}; expected {family!r}")
    if isinstance(config, HunyuanConfig):
        return HunyuanTextEncoder(folder, lens=config.text_lens, device=device, offload_after_use=True)
    return UMT5Encoder(folder, length=config.text_len, device=device, offload_after_use=True)


def open_image_reader(
    folder: str | Path, config: BackboneConfig, device: torch.device | str = "cpu"
) -> HunyuanImageEncoder:
    """The encoder of start images of a folder, for `config`'s model; its weights load at the first image and are let go after.
    Raises WorldlineError where the model takes no image tokens, or the folder has no image encoder."""
    if not isinstance(config, HunyuanConfig) or not config.text_lens[IMAGE]:
        raise WorldlineError(
            f"start images for a {type(config).__name__} without image tokens; expected HunyuanVideo with a third "
            "length in text_lens, or text.images: false"
        )
    size = (config.text_lens[IMAGE], config.image_dim)
    return HunyuanImageEncoder(folder, size=size, device=device, offload_after_use=True)


def cleaner(kind: Reader) -> Callable[[str], str]:
    """What an encoder does to a prompt first."""
    return UMT5Encoder.clean if kind == "umt5" else HunyuanTextEncoder.clean
