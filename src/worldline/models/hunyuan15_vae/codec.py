"""Encoder, decoder and codec of HunyuanVideo-1.5 (keys as diffusers names them).

Frame 0 is latent 0 alone, `stride` frames make a latent after it. Both directions are causal and stream exactly, the
attention at the coarsest level included: its past grows with the clip (6.4 MB a latent at 480 x 832 in bf16) unless
`attention_window` bounds it. Published caches of this autoencoder leave that past out: latents made with them are other
latents (up to 0.09 apart).

Legend: B batch, T latent frames, F pixel frames, C channels, H W latent grid, h w pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from worldline.models.codec import StreamedCodec
from worldline.models.hunyuan15_vae.config import HunyuanVAEConfig
from worldline.models.hunyuan15_vae.layers import CausalConv3d, Downsample, Level, MidBlock, PastAttention, Upsample
from worldline.models.tape import Memory, Tape
from worldline.models.wan_vae.layers import ChannelNorm
from worldline.schema import ShapeError


class Encoder(nn.Module):
    """[B, 3, F, h, w] -> mean and log-variance [B, 2C, T, H, W]."""

    def __init__(self, cfg: HunyuanVAEConfig) -> None:
        super().__init__()
        self.out = 2 * cfg.latent_channels
        self.conv_in, width = CausalConv3d(3, cfg.widths[0]), cfg.widths[0]
        self.down_blocks = nn.ModuleList()
        for (out, after), (space, time) in zip(pairwise((*cfg.widths, 0)), cfg.levels, strict=True):
            step = Downsample(out, after, time) if space else None
            self.down_blocks.append(Level(width, out, cfg.blocks, step, "downsamplers"))
            width = after if space else out
        self.mid_block = MidBlock(width, cfg.attention_window)
        self.norm_out, self.conv_out = ChannelNorm(width), CausalConv3d(width, self.out)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = self.conv_in(x, tape)
        for block in self.down_blocks:
            x = block(x, tape)
        x = self.mid_block(x, tape)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)), tape)
        return out + x.unflatten(1, (self.out, -1)).mean(dim=2)


class Decoder(nn.Module):
    """[B, C, T, H, W] -> [B, 3, F, h, w]."""

    def __init__(self, cfg: HunyuanVAEConfig) -> None:
        super().__init__()
        outs = tuple(reversed(cfg.widths))
        halvings, doublings = sum(space for space, _ in cfg.levels), sum(time for _, time in cfg.levels)
        self.conv_in, width = CausalConv3d(cfg.latent_channels, outs[0]), outs[0]
        self.mid_block = MidBlock(width, cfg.attention_window)
        self.up_blocks = nn.ModuleList()
        for i, (out, after) in enumerate(pairwise((*outs, 0))):
            step = Upsample(out, after, i < doublings) if i < halvings else None
            self.up_blocks.append(Level(width, out, cfg.blocks + 1, step, "upsamplers"))
            width = after if i < halvings else out
        self.norm_out, self.conv_out = ChannelNorm(width), CausalConv3d(width, 3)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        h = self.conv_in(x, tape)
        x = self.mid_block(h + x.repeat_interleave(h.shape[1] // x.shape[1], dim=1), tape)
        for block in self.up_blocks:
            x = block(x, tape)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)), tape)
        return out


class HunyuanVAE(StreamedCodec):
    """Encode and decode clips whole or piece by piece. Video is in [-1, 1], latents are scaled.

    Results have the dtype of what went in; the layers compute in the dtype of the weights. Whole clips go through one
    latent at a time, so that memory does not grow with their length (but for the attention's past).
    """

    def __init__(self, cfg: HunyuanVAEConfig | None = None) -> None:
        super().__init__()
        self.config = cfg or HunyuanVAEConfig()
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

    def encode_stream(self, video: Tensor, state: Memory | None) -> tuple[Tensor, Memory]:
        """Encode the next frames of a stream: stride n + 1 at its start (state None), stride n later on."""
        self._check_frames(video, state)
        x = video.transpose(1, 2).to(self.encoder.conv_in.conv.weight.dtype)
        tape = Tape(_fitting(state, x, self.encoder))
        mean = self.encoder(x, tape)[:, : self.latent_channels].transpose(1, 2)
        return (mean.float() * self.config.scaling).to(video.dtype), tape.memory()

    def decode_stream(self, latents: Tensor, state: Memory | None) -> tuple[Tensor, Memory]:
        """Decode the next latents of a stream, any number of them; state is None at its start."""
        self._check_latents(latents)
        x = (latents.float() / self.config.scaling).to(self.decoder.conv_in.conv.weight.dtype).transpose(1, 2)
        tape = Tape(_fitting(state, x, self.decoder))
        video = self.decoder(x, tape).transpose(1, 2)
        return video.clamp(-1, 1).to(latents.dtype), tape.memory()


def _fitting(state: Memory | None, x: Tensor, half: Encoder | Decoder) -> Memory | None:
    """`state`, checked to be one of this half of the codec, at the batch and size of its input x [B, C, T, H, W]."""
    if state is None:
        return None
    layers = sum(isinstance(m, (CausalConv3d, PastAttention)) for m in half.modules())
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
