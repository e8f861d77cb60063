"""Encoder, decoder and codec of the Wan video autoencoders (Wan Team 2025, section 4.1; keys as diffusers names them).

Frame 0 is latent 0 alone, `stride` frames make a latent after it. Both directions are causal and stream exactly: what a
stream has seen is a value, `state`, that goes into a call and comes out of it changed, so streams may interleave, fork
and rewind. Legend: B batch, T latent frames, F pixel frames, C channels, H W latent grid, h w pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldline.models.codec import StreamedCodec
from worldline.models.tape import Memory, Tape
from worldline.models.wan_vae.config import WAN_VAE_VARIANTS, WanVAEConfig
from worldline.models.wan_vae.layers import (
    CausalConv3d,
    ChannelNorm,
    Downsample,
    MidBlock,
    ResBlock,
    ResidualDown,
    ResidualUp,
    UpLevel,
)
from worldline.schema import ShapeError


class Encoder(nn.Module):
    """[B, 3 patch^2, F, h / patch, w / patch] -> mean and log-variance [B, 2C, T, H, W]."""

    def __init__(self, cfg: WanVAEConfig) -> None:
        super().__init__()
        widths = [cfg.encoder_width * m for m in (1, *cfg.multipliers)]
        self.conv_in = CausalConv3d(3 * cfg.patch**2, widths[0])
        self.down_blocks = nn.ModuleList()
        for i, (width, out) in enumerate(pairwise(widths)):
            halve = i < len(cfg.halve_time)
            time = halve and cfg.halve_time[i]
            if cfg.residual:
                self.down_blocks.append(ResidualDown(width, out, cfg.blocks, halve, time))
                continue
            self.down_blocks.extend(ResBlock(width if j == 0 else out, out) for j in range(cfg.blocks))
            if halve:
                self.down_blocks.append(Downsample(out, time))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out, self.conv_out = ChannelNorm(widths[-1]), CausalConv3d(widths[-1], 2 * cfg.latent_channels)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = self.conv_in(x, tape)
        for block in self.down_blocks:
            x = block(x, tape)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x, tape))), tape)


class Decoder(nn.Module):
    """[B, C, T, H, W] -> [B, 3 patch^2, F, h / patch, w / patch]."""

    def __init__(self, cfg: WanVAEConfig) -> None:
        super().__init__()
        outs = [cfg.decoder_width * m for m in reversed(cfg.multipliers)]
        self.conv_in, self.mid_block = CausalConv3d(cfg.latent_channels, outs[0]), MidBlock(outs[0])
        level = ResidualUp if cfg.residual else UpLevel
        self.up_blocks, width = nn.ModuleList(), outs[0]
        for out, time in zip(outs, (*reversed(cfg.halve_time), None), strict=True):
            double = time is not None
            self.up_blocks.append(level(width, out, cfg.blocks + 1, double, bool(time)))
            width = out if cfg.residual else out // 2
        self.norm_out, self.conv_out = ChannelNorm(outs[-1]), CausalConv3d(outs[-1], 3 * cfg.patch**2)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = self.mid_block(self.conv_in(x, tape), tape)
        for block in self.up_blocks:
            x = block(x, tape)
        return self.conv_out(F.silu(self.norm_out(x)), tape)


class WanVAE(StreamedCodec):
    """Encode and decode clips whole or piece by piece. Video is in [-1, 1], latents are normalised per channel.

    Results have the dtype of what went in; the layers compute in the dtype of the weights. Whole clips go through one
    latent at a time, so that memory does not grow with their length.
    """

    def __init__(self, cfg: WanVAEConfig | None = None) -> None:
        super().__init__()
        self.config = cfg or WAN_VAE_VARIANTS["wan2.1"]
        C = self.config.latent_channels
        self.encoder, self.quant_conv = Encoder(self.config), nn.Conv3d(2 * C, 2 * C, 1)
        self.post_quant_conv, self.decoder = nn.Conv3d(C, C, 1), Decoder(self.config)

    def encode_stream(self, video: Tensor, state: Memory | None) -> tuple[Tensor, Memory]:
        """Encode the next frames of a stream: stride n + 1 at its start (state None), stride n later on."""
        self._check_frames(video, state)
        p = self.config.patch
        x = rearrange(video.to(self.quant_conv.weight.dtype), "b f c (h p) (w q) -> b (c q p) f h w", p=p, q=p)
        tape = Tape(_fitting(state, x, self.encoder))
        moments = self.quant_conv(self.encoder(x, tape))
        mean, std = self._statistics(video.device)
        latents = moments[:, : self.latent_channels].transpose(1, 2)
        return ((latents.float() - mean) / std).to(video.dtype), tape.memory()

    def decode_stream(self, latents: Tensor, state: Memory | None) -> tuple[Tensor, Memory]:
        """Decode the next latents of a stream, any number of them; state is None at its start."""
        self._check_latents(latents)
        mean, std = self._statistics(latents.device)
        x = (latents.float() * std + mean).to(self.post_quant_conv.weight.dtype).transpose(1, 2)
        tape = Tape(_fitting(state, x, self.decoder))
        video = self.decoder(self.post_quant_conv(x), tape)
        p = self.config.patch
        video = rearrange(video, "b (c q p) f h w -> b f c (h p) (w q)", p=p, q=p)
        return video.clamp(-1, 1).to(latents.dtype), tape.memory()

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation [C, 1, 1], fp32. Made from the config each time: as buffers they would be no part of the
        published keys, become bf16 with the weights, and be lost by a model built on the meta device."""
        both = torch.tensor([self.config.latents_mean, self.config.latents_std], device=device)
        mean, std = both[:, :, None, None].unbind()
        return mean, std


def _fitting(state: Memory | None, x: Tensor, half: Encoder | Decoder) -> Memory | None:
    """`state`, checked to be one of this half of the codec, at the batch and size of its input x [B, C, T, H, W]."""
    if state is None:
        return None
    layers = sum(isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1 for m in half.modules())
    if len(state) != layers:
        raise ShapeError(
            f"a state of {len(state)} memories for the {layers} of this {type(half).__name__.lower()}; pass on what its "
            "own last call returned, or None to start a clip"
        )
    had, wanted = state[0].shape, x.shape
    if (had[0], *had[3:]) != (wanted[0], *wanted[3:]):
        raise ShapeError(
            f"a stream of {had[0]} x {had[3]} x {had[4]} (batch, height, width) cannot go on with "
            f"{wanted[0]} x {wanted[3]} x {wanted[4]}; start a new one with state None"
        )
    return state
