"""What the rest of the framework asks of a video codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from worldline.schema import ShapeError, TimeGrid


class Codec(nn.Module, ABC):
    """Video [B, F, 3, h, w] in [-1, 1] to normalised latents [B, T, C, H, W] and back, causally: frame 0 alone is latent 0.

    Decoding streams: what the next latents need of those before is a value, `state` (None at the start of a clip), so
    streams may interleave, fork and rewind.
    """

    config: Any

    @property
    @abstractmethod
    def grid(self) -> TimeGrid:
        """The time arithmetic of this codec."""

    @property
    @abstractmethod
    def spatial(self) -> int:
        """Pixels a latent cell, on either axis."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of a latent frame."""

    def freeze(self, dtype: torch.dtype) -> Codec:
        """Lay the weights out for inference in `dtype`, in place, where this codec gains by it; it can then no longer be
        trained, saved or moved."""
        return self

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """video [B, F, 3, h, w] -> latents [B, T, C, H, W] (the mode, no sampling)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, T, C, H, W] -> video [B, F, 3, h, w]."""

    @abstractmethod
    def decode_stream(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Decode the next latents of a stream; returns (video, state)."""

    def _check_video(self, video: Tensor) -> None:
        s = self.spatial
        if video.ndim != 5 or video.shape[2] != 3:
            raise ShapeError(f"video {tuple(video.shape)}: expected [B, F, 3, h, w]")
        h, w = video.shape[3:]
        if h % s or w % s or not h * w:
            raise ShapeError(
                f"video of {h} x {w} pixels: expected a height and a width divisible by {s}; crop or resize it to "
                f"{max(s, h - h % s)} x {max(s, w - w % s)}"
            )

    def state_after(self, latents: Tensor) -> Any:
        """The state of a stream that has decoded `latents` [B, T, C, H, W] from its start."""
        return self.decode_stream(latents, None)[1]
