"""Sizes of the Wan autoencoders, and the statistics of their latents as published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldline.schema import WorldlineError


@dataclass(frozen=True)
class WanVAEConfig:
    """One autoencoder. A level halves the picture; all but the last do, and those marked in `halve_time` halve time too."""

    latents_mean: tuple[float, ...]  # one per latent channel
    latents_std: tuple[float, ...]
    encoder_width: int
    decoder_width: int
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # width of each level, finest first
    halve_time: tuple[bool, ...] = (False, True, True)  # by the step after each level, finest first
    blocks: int = 2  # residual blocks a level (one more in the decoder)
    patch: int = 1  # pixels folded into channels on either axis before the first level
    residual: bool = False  # levels have parameter-free shortcuts (Wan2.2)

    def __post_init__(self) -> None:
        if len(self.latents_mean) != len(self.latents_std) or not self.latents_mean or min(self.latents_std) <= 0:
            raise WorldlineError(
                f"{len(self.latents_mean)} means and {len(self.latents_std)} deviations (smallest "
                f"{min(self.latents_std, default=0)}); expected one positive deviation a mean"
            )
        if len(self.halve_time) != len(self.multipliers) - 1:
            raise WorldlineError(
                f"halve_time has {len(self.halve_time)} entries; expected {len(self.multipliers) - 1}, "
                f"one between any two of the {len(self.multipliers)} levels"
            )

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return len(self.latents_mean)

    @property
    def stride(self) -> int:
        """Pixel frames a latent."""
        return 2 ** sum(self.halve_time)

    @property
    def spatial(self) -> int:
        """Pixels a latent cell, on either axis."""
        return self.patch * 2 ** len(self.halve_time)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> WanVAEConfig:
        """The config of a diffusers `AutoencoderKLWan` (its `config.json`). Raises WorldlineError where it asks for
        something no published checkpoint has (attention between levels)."""
        if config.get("attn_scales"):
            raise WorldlineError(f"attn_scales {config['attn_scales']}; expected none, as in every published Wan VAE")
        return cls(
            latents_mean=tuple(config["latents_mean"]),
            latents_std=tuple(config["latents_std"]),
            encoder_width=config["base_dim"],
            decoder_width=config.get("decoder_base_dim") or config["base_dim"],
            multipliers=tuple(config["dim_mult"]),
            halve_time=tuple(config["temperal_downsample"]),
            blocks=config["num_res_blocks"],
            patch=config.get("patch_size") or 1,
            residual=config.get("is_residual", False),
        )


# fmt: off
WAN_VAE_VARIANTS: dict[str, WanVAEConfig] = {
    # 127 M parameters, 4 x 8 x 8: all of Wan2.1, and Wan2.2-A14B.
    "wan2.1": WanVAEConfig(
        latents_mean=(
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ),
        latents_std=(
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
        ),
        encoder_width=96,
        decoder_width=96,
    ),
    # 705 M parameters, 4 x 16 x 16: Wan2.2-TI2V-5B.
    "wan2.2": WanVAEConfig(
        latents_mean=(
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
            -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
            -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
            -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
            0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ),
        latents_std=(
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
            0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
            0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
            0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
            0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
            0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ),
        encoder_width=160,
        decoder_width=256,
        patch=2,
        residual=True,
    ),
}
# fmt: on
