"""A small causal video autoencoder: pixel frame 0 alone, then `stride` frames a latent.

Encoder: every group of frames is folded into channels and encoded by 2D convolutions, so a latent depends on its own
group alone and a window of latents may start anywhere (only the lone first frame has its own stem).
Decoder: latent k is decoded together with latent k-1, the only state streaming has to carry; the frames of a group are one
picture displaced by coarse motion fields, and corrected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldline.models.codec import Codec
from worldline.nn.packed import ConvReLU, pack_convolutions
from worldline.schema import ShapeError, TimeGrid


@dataclass(frozen=True)
class NanoVAEConfig:
    """Widths of the three resolutions (1/2, 1/4, 1/8) and of the latent."""

    latent_channels: int = 16
    encoder_widths: tuple[int, int, int] = (64, 96, 160)
    decoder_widths: tuple[int, int, int] = (64, 128, 192)
    blocks: int = 2  # residual blocks a resolution
    stride: int = 4  # pixel frames a latent

    spatial: int = 8  # pixels a latent cell, fixed by the three resolutions


class ResBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))). No norm: statistics over the image would hide a room's absolute colour, and plain
    convolutions are the fastest thing a CPU can run. The second convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvReLU(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(F.relu(x)))


class Encoder(nn.Module):
    """[N, 3 stride, h, w] (or [N, 3, h, w] for the lone first frame) -> [N, C, h/8, w/8]."""

    def __init__(self, cfg: NanoVAEConfig) -> None:
        super().__init__()
        w1, w2, w3 = cfg.encoder_widths
        self.stem = nn.Conv2d(3 * cfg.stride * 4, w1, 3, padding=1)
        self.first_stem = nn.Conv2d(3 * 4, w1, 3, padding=1)
        self.trunk = nn.Sequential(
            *(ResBlock(w1) for _ in range(cfg.blocks)),
            nn.Conv2d(w1, w2, 4, stride=2, padding=1),
            *(ResBlock(w2) for _ in range(cfg.blocks)),
            nn.Conv2d(w2, w3, 4, stride=2, padding=1),
            *(ResBlock(w3) for _ in range(cfg.blocks)),
            nn.ReLU(),
            nn.Conv2d(w3, cfg.latent_channels, 3, padding=1),
        )

    def forward(self, frames: Tensor, *, first: bool) -> Tensor:
        folded = F.pixel_unshuffle(frames, 2)
        return self.trunk(self.first_stem(folded) if first else self.stem(folded))


class Motion(nn.Module):
    """How far each frame of a group lies from the group's picture: a coarse displacement field a frame.

    Convolutions find motion badly by themselves; so the distances between latent k and latent k-1 at all shifts of up to
    two cells sideways and one up or down (a cost volume) are an input. Starts at rest.
    """

    REACH = (1, 2)  # cells up and down, and sideways

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        up, side = self.REACH
        self.mix = ConvReLU(width + (2 * up + 1) * (2 * side + 1), width, 3, padding=1)
        self.hidden = ConvReLU(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 2 * stride, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, now: Tensor, before: Tensor) -> Tensor:
        """features [N, W, H, W'], latents now and before [N, C, H, W'] -> displacement [N, 2 stride, H, W'] in shares of
        half the picture, x then y of every frame."""
        (H, W), (up, side) = now.shape[-2:], self.REACH
        padded = F.pad(before, (side, side, up, up), mode="replicate")
        shifted = padded.unfold(2, H, 1).unfold(3, W, 1)  # [N, C, 2 up + 1, 2 side + 1, H, W'], a view
        costs = (now[:, :, None, None] - shifted).square().mean(dim=1).flatten(1, 2)
        return self.out(self.hidden(self.mix(torch.cat([features, costs.to(features.dtype)], dim=1))))


def displaced(frames: Tensor, field: Tensor) -> Tensor:
    """Sample frames [N, 3, h, w] at points moved by field [N, 2, H, W] (coarse, in shares of half the picture)."""
    fine = F.interpolate(field.float(), size=frames.shape[-2:], mode="bilinear", align_corners=False)
    identity = torch.eye(2, 3, device=frames.device).expand(len(frames), 2, 3)
    grid = F.affine_grid(identity, list(frames.shape), align_corners=False)  # [N, h, w, 2]
    moved = grid + fine.permute(0, 2, 3, 1)
    return F.grid_sample(frames.float(), moved, mode="bilinear", padding_mode="border", align_corners=False)


class Decoder(nn.Module):
    """[N, 2C, h/8, w/8], latents k and k-1 -> [N, 3 stride, h, w] (or [N, 3, h, w] for the lone first frame)."""

    def __init__(self, cfg: NanoVAEConfig) -> None:
        super().__init__()
        w1, w2, w3 = cfg.decoder_widths
        self.stride, self.coarse = cfg.stride, 1 + cfg.blocks  # layers of the trunk at latent resolution
        self.trunk = nn.Sequential(
            nn.Conv2d(2 * cfg.latent_channels, w3, 3, padding=1),
            *(ResBlock(w3) for _ in range(cfg.blocks)),
            nn.Conv2d(w3, 4 * w2, 1),
            nn.PixelShuffle(2),
            *(ResBlock(w2) for _ in range(cfg.blocks)),
            nn.Conv2d(w2, 4 * w1, 1),
            nn.PixelShuffle(2),
            *(ResBlock(w1) for _ in range(cfg.blocks)),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(w1, 3 * cfg.stride * 4, 3, padding=1)
        self.first_head = nn.Conv2d(w1, 3 * 4, 3, padding=1)
        self.motion = Motion(w3, cfg.stride)

    def forward(self, latents: Tensor, *, first: bool) -> Tensor:
        features = self.trunk[: self.coarse](latents)
        h = self.trunk[self.coarse :](features)
        if first:
            return F.pixel_shuffle(self.first_head(h), 2)
        frames = F.pixel_shuffle(self.head(h), 2)
        fields = self.motion(F.relu(features), *latents.chunk(2, dim=1))
        return (
            displaced(
                rearrange(frames, "n (r c) h w -> (n r) c h w", r=self.stride),
                rearrange(fields, "n (r d) h w -> (n r) d h w", r=self.stride),
            )
            .unflatten(0, (-1, self.stride))
            .flatten(1, 2)
        )


class NanoVAE(Codec):
    """Encode and decode whole clips or chunk by chunk. Video is float in [-1, 1], latents are normalised per channel."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, cfg: NanoVAEConfig | None = None) -> None:
        super().__init__()
        self.config = cfg or NanoVAEConfig()
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)
        self.register_buffer("latent_mean", torch.zeros(self.config.latent_channels))
        self.register_buffer("latent_std", torch.ones(self.config.latent_channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def grid(self) -> TimeGrid:
        """The time arithmetic of this codec."""
        return TimeGrid(self.config.stride)

    @property
    def spatial(self) -> int:
        """Pixels a latent cell, on either axis."""
        return self.config.spatial

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return self.config.latent_channels

    def freeze(self, dtype: torch.dtype) -> NanoVAE:
        """Convolutions in bf16, in the order of a CPU's kernels; nothing in other types, nothing on other devices."""
        if dtype == torch.bfloat16 and self.latent_std.device.type == "cpu":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.bfloat16()
            pack_convolutions(self)
        return self.eval().requires_grad_(False)

    def encode_raw(self, video: Tensor) -> Tensor:
        """video [B, F, 3, h, w] -> un-normalised latents [B, T, C, h/8, w/8]. Raises where F is not stride n + 1."""
        if video.ndim != 5 or video.shape[2] != 3 or video.shape[3] % self.spatial or video.shape[4] % self.spatial:
            raise ShapeError(
                f"video {tuple(video.shape)}: expected [B, F, 3, h, w] with h and w divisible by {self.spatial}"
            )
        B, T = video.shape[0], self.grid.latent_frames(video.shape[1])
        z = self.encoder(video[:, 0], first=True)[:, None]  # [B, 1, C, H, W]
        if T == 1:
            return z
        groups = rearrange(video[:, 1:], "b (t r) c h w -> (b t) (r c) h w", r=self.config.stride)
        return torch.cat([z, self.encoder(groups, first=False).unflatten(0, (B, T - 1))], dim=1)

    def decode_raw(self, z: Tensor, previous: Tensor | None) -> Tensor:
        """Un-normalised latents [B, T, C, H, W] that follow latent `previous` [B, C, H, W] (None: z starts the clip)."""
        B, first = z.shape[0], previous is None
        before = torch.zeros_like(z[:, :1]) if previous is None else previous[:, None]
        pairs = torch.cat([z, torch.cat([before, z[:, :-1]], dim=1)], dim=2)  # [B, T, 2C, H, W]
        frames = []
        if first:
            frames.append(self.decoder(pairs[:, 0], first=True)[:, None])
            pairs = pairs[:, 1:]
        if pairs.shape[1]:
            later = self.decoder(pairs.flatten(0, 1), first=False)
            frames.append(rearrange(later, "(b t) (r c) h w -> b (t r) c h w", b=B, r=self.config.stride))
        return torch.cat(frames, dim=1)

    def motion_fields(self, z: Tensor, *, learns_features: bool = True) -> Tensor:
        """Displacement of every frame of every group of raw latents [B, T, C, H, W]: [B, T - 1, stride, 2, H, W].
        learns_features: whether gradients go on into the decoder's trunk."""
        pairs = torch.cat([z[:, 1:], z[:, :-1]], dim=2).flatten(0, 1)
        with torch.set_grad_enabled(learns_features and torch.is_grad_enabled()):
            features = F.relu(self.decoder.trunk[: self.decoder.coarse](pairs))
        fields = self.decoder.motion(features, *pairs.chunk(2, dim=1))
        return rearrange(fields, "(b t) (r d) h w -> b t r d h w", b=len(z), d=2)

    def encode(self, video: Tensor) -> Tensor:
        """video [B, F, 3, h, w] in [-1, 1] -> normalised latents [B, T, C, H, W]."""
        mean, std = (s.view(1, 1, -1, 1, 1) for s in (self.latent_mean, self.latent_std))
        return (self.encode_raw(video) - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, T, C, H, W] -> video [B, F, 3, h, w] in [-1, 1]."""
        return self.decode_stream(latents, None)[0]

    def decode_stream(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decode the next latents of a stream. `state` is the last normalised latent so far [B, C, H, W], None at the
        start; it is a value, so streams may interleave, fork and rewind. Returns (video, state)."""
        mean, std = (s.view(1, -1, 1, 1) for s in (self.latent_mean, self.latent_std))
        previous = None if state is None else state * std + mean
        return self.decode_raw(latents * std[:, None] + mean[:, None], previous).clamp(-1, 1), latents[:, -1]

    def state_after(self, latents: Tensor) -> Tensor:
        """The last latent: nothing has to be decoded for it."""
        return latents[:, -1]
