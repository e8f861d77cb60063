"""Sizes of HunyuanVideo-1.5's autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import Any

from worldline.schema import WorldlineError


@dataclass(frozen=True)
class HunyuanVAEConfig:
    """One autoencoder: 1.2 G parameters, 4 x 16 x 16, as published."""

    latent_channels: int = 32
    widths: tuple[int, ...] = (128, 256, 512, 1024, 1024)  # of each level, finest first
    blocks: int = 2  # residual blocks a level (one more in the decoder)
    spatial: int = 16  # pixels a latent cell
    stride: int = 4  # pixel frames a latent
    scaling: float = 1.03682  # of latents
    attention_window: int | None = None  # latent frames that the coarsest level's attention looks back over; None: all

    def __post_init__(self) -> None:
        levels, halvings = len(self.widths), log2(self.spatial)
        if not halvings.is_integer() or halvings > levels - 1 or not log2(self.stride).is_integer():
            raise WorldlineError(
                f"spatial {self.spatial} and stride {self.stride} with {levels} levels; expected powers of two, and a level "
                "more than spatial halves"
            )
        if self.attention_window is not None and self.attention_window < 1:
            raise WorldlineError(f"attention_window {self.attention_window}; expected 1 latent frame or more, or none")

    @property
    def levels(self) -> tuple[tuple[bool, bool], ...]:
        """Of each level, finest first: whether the step after it halves the picture, and the frame rate."""
        halvings = int(log2(self.spatial))
        first = halvings - int(log2(self.stride))
        return tuple((i < halvings, first <= i < halvings) for i in range(len(self.widths)))

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> HunyuanVAEConfig:
        """The config of a diffusers `AutoencoderKLHunyuanVideo15` (its `config.json`)."""
        if not config.get("downsample_match_channel", True) or not config.get("upsample_match_channel", True):
            raise WorldlineError("steps that keep their level's width; expected those of the published autoencoder")
        return cls(
            latent_channels=config["latent_channels"],
            widths=tuple(config["block_out_channels"]),
            blocks=config["layers_per_block"],
            spatial=config["spatial_compression_ratio"],
            stride=config["temporal_compression_ratio"],
            scaling=config.get("scaling_factor", 1.03682),
        )
