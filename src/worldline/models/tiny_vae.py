"""Tiny video autoencoders in the layout of TAEHV (Boer Bohan 2025): taew2_1 and taew2_2 for Wan's
latents, taehv1_5 for HunyuanVideo-1.5's.

2D convolutions; the only reach in time is one frame back, in each `MemBlock`, so a stream's whole state is the last frame
each of them saw. The decoder opens a clip as if latent 0 stood for `stride` frames and drops all but the last of them.
Weights load under the published key names (`encoder.N...`, `decoder.N...`), where N counts layers without parameters too.

Latents are those a diffusion model sees (normalised). Legend: B batch, T latent frames, F pixel frames, C channels, H W
latent grid, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.models.codec import Codec
from worldline.schema import ShapeError, TimeGrid, WorldlineError

Memory = tuple[Tensor, ...]  # the last frame [B, C, H, W] every MemBlock of the decoder saw


@dataclass(frozen=True)
class TinyVAEConfig:
    """Sizes of a tiny autoencoder: 8 x 8 pixels (times `patch`) and 4 frames a latent."""

    latent_channels: int = 16
    patch: int = 1  # pixels folded into channels on either axis
    encoder_width: int = 64
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)  # at latent resolution, then after each doubling
    blocks: int = 3  # MemBlocks a resolution

    def __post_init__(self) -> None:
        if len(self.decoder_widths) != 4 or min(self.decoder_widths) < 1:
            raise WorldlineError(f"decoder_widths {self.decoder_widths}; expected four positive widths")


TINY_VAE_VARIANTS: dict[str, TinyVAEConfig] = {
    "taew2_1": TinyVAEConfig(),
    "taew2_2": TinyVAEConfig(latent_channels=48, patch=2),
    "taehv1_5": TinyVAEConfig(latent_channels=32, patch=2),
}


class SoftClamp(nn.Module):
    """3 tanh(x / 3): keeps outliers of a diffusion model from the decoder."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """relu(x + convs([x, the frame before x]))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class TimePool(nn.Module):
    """One frame of `stride` frames."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unflatten(0, (-1, self.stride)).flatten(1, 2))


class TimeGrow(nn.Module):
    """`stride` frames of one frame."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, stride * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).unflatten(1, (self.stride, -1)).flatten(0, 1)


def encoder_layers(cfg: TinyVAEConfig) -> nn.Sequential:
    """Time halves before the first two of three halvings of the picture."""
    width = cfg.encoder_width
    layers: list[nn.Module] = [nn.Conv2d(3 * cfg.patch**2, width, 3, padding=1), nn.ReLU()]
    for stride in (2, 2, 1):
        layers += [TimePool(width, stride), nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)]
        layers += [MemBlock(width) for _ in range(cfg.blocks)]
    return nn.Sequential(*layers, nn.Conv2d(width, cfg.latent_channels, 3, padding=1))


def decoder_layers(cfg: TinyVAEConfig) -> nn.Sequential:
    """Time doubles after the last two of three doublings of the picture."""
    widths = cfg.decoder_widths
    layers: list[nn.Module] = [SoftClamp(), nn.Conv2d(cfg.latent_channels, widths[0], 3, padding=1), nn.ReLU()]
    for stride, width, out in zip((1, 2, 2), widths, widths[1:], strict=False):
        layers += [MemBlock(width) for _ in range(cfg.blocks)]
        layers += [
            nn.Upsample(scale_factor=2),
            TimeGrow(width, stride),
            nn.Conv2d(width, out, 3, padding=1, bias=False),
        ]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[3], 3 * cfg.patch**2, 3, padding=1))


def run(layers: nn.Sequential, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
    """Layers on frames [B, T, C, H, W] that follow those of `memory` (None: zeros came before)."""
    batch, past, seen = x.shape[0], iter(memory or ()), []
    x = x.flatten(0, 1)
    for layer in layers:
        if isinstance(layer, MemBlock):
            frames = x.unflatten(0, (batch, -1))
            before = torch.zeros_like(frames[:, 0]) if memory is None else next(past).to(x.dtype)
            seen.append(frames[:, -1].clone())  # a slice would hold on to every frame
            x = layer(x, torch.cat([before[:, None], frames[:, :-1]], dim=1).flatten(0, 1))
        else:
            x = layer(x)
    return x.unflatten(0, (batch, -1)), tuple(seen)


class TinyVAE(Codec):
    """Encode and decode clips whole or piece by piece. Video is in [-1, 1], latents are those of the diffusion model.

    Results have the dtype of what went in; the layers compute in the dtype of the weights.
    """

    def __init__(self, cfg: TinyVAEConfig | None = None) -> None:
        super().__init__()
        self.config = cfg or TINY_VAE_VARIANTS["taew2_1"]
        self.encoder, self.decoder = encoder_layers(self.config), decoder_layers(self.config)

    @property
    def grid(self) -> TimeGrid:
        """The time arithmetic of this codec."""
        return TimeGrid(4)

    @property
    def spatial(self) -> int:
        """Pixels a latent cell, on either axis."""
        return 8 * self.config.patch

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return self.config.latent_channels

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def encode(self, video: Tensor) -> Tensor:
        """video [B, F, 3, h, w] in [-1, 1] -> latents [B, T, C, H, W], whole clips only.

        As published, latent k is made of frames 4k .. 4k + 3, the last frame repeated where there is none: it looks up to
        three frames past the time grid. Data for training come from the full autoencoder, which does not.
        Raises ShapeError where h or w does not divide, WorldlineError where F is not 4n + 1.
        """
        self._check_video(video)
        self.grid.latent_frames(video.shape[1])
        x = F.pixel_unshuffle((video + 1) / 2, self.config.patch)
        x = torch.cat([x, x[:, -1:].expand(-1, 3, -1, -1, -1)], dim=1)
        return run(self.encoder, x.to(self._dtype), None)[0].to(video.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, T, C, H, W] -> video [B, F, 3, h, w] in [-1, 1], all frames at once. Raises ShapeError."""
        return self.decode_stream(latents, None)[0]

    def decode_stream(self, latents: Tensor, state: Memory | None) -> tuple[Tensor, Memory]:
        """Decode the next latents of a stream, any number of them; state is None at its start. It is a value, so streams
        may interleave, fork and rewind. Returns (video, state)."""
        if latents.ndim != 5 or latents.shape[2] != self.latent_channels or not latents.numel():
            raise ShapeError(
                f"latents {tuple(latents.shape)}: expected [B, T, {self.latent_channels}, H, W] and none of them zero"
            )
        if state is not None:
            self._check_state(state, latents)
        x, memory = run(self.decoder, latents.to(self._dtype), state)
        if state is None:
            x = x[:, self.grid.stride - 1 :]  # latent 0 stands for one frame
        video = F.pixel_shuffle(x, self.config.patch).clamp(0, 1) * 2 - 1
        return video.to(latents.dtype), memory

    def _check_state(self, state: Memory, latents: Tensor) -> None:
        layers = 3 * self.config.blocks
        if len(state) != layers:
            raise ShapeError(
                f"a state of {len(state)} memories for the {layers} of this decoder; pass on what its own last call "
                "returned, or None to start a clip"
            )
        had, wanted = (len(state[0]), *state[0].shape[2:]), (len(latents), *latents.shape[3:])
        if had != wanted:
            raise ShapeError(
                f"a stream of {had[0]} x {had[1]} x {had[2]} (batch, height, width) cannot go on with "
                f"{wanted[0]} x {wanted[1]} x {wanted[2]}; start a new one with state None"
            )
