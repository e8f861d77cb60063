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


class StreamedCodec(Codec):
    """A codec that encodes and decodes exactly piece by piece. Whole clips go through one latent at a time, so that memory
    does not grow with their length."""

    @property
    def grid(self) -> TimeGrid:
        """The time arithmetic of this codec."""
        return TimeGrid(self.config.stride)

    @property
    def spatial(self) -> int:
        """Pixels a latent cell, on either axis."""
        return int(self.config.spatial)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return int(self.config.latent_channels)

    @abstractmethod
    def encode_stream(self, video: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Encode the next frames of a stream: stride n + 1 at its start (state None), stride n later on."""

    def encode(self, video: Tensor) -> Tensor:
        """video [B, F, 3, h, w] in [-1, 1] -> latents [B, T, C, H, W], the modes of their distributions.

        Raises ShapeError where h or w does not divide, WorldlineError where F is not stride n + 1.
        """
        self._check_video(video)
        T, state, parts = self.grid.latent_frames(video.shape[1]), None, []
        for frames in video.split([1] + [self.config.stride] * (T - 1), dim=1):
            latents, state = self.encode_stream(frames, state)
            parts.append(latents)
        return torch.cat(parts, dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, T, C, H, W] -> video [B, F, 3, h, w] in [-1, 1]. Raises ShapeError."""
        self._check_latents(latents)
        state, parts = None, []
        for latent in latents.split(1, dim=1):
            video, state = self.decode_stream(latent, state)
            parts.append(video)
        return torch.cat(parts, dim=1)

    def _check_frames(self, video: Tensor, state: Any) -> None:
        self._check_video(video)
        frames, stride = video.shape[1], self.config.stride
        if state is None:
            self.grid.latent_frames(frames)
        elif frames % stride or not frames:
            raise ShapeError(f"{frames} frames go on a stream; expected a multiple of {stride}, hold back the rest")

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[2] != self.latent_channels or not latents.numel():
            raise ShapeError(
                f"latents {tuple(latents.shape)}: expected [B, T, {self.latent_channels}, H, W] and none of them zero"
            )
