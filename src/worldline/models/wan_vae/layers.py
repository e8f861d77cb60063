"""Layers of the Wan autoencoders that run over a stream: each sees the frames before its input through a `Tape`.

What is unusual: time is causal and the first frame of a clip stands alone. It is never doubled or halved in time, so the
layers that change the frame rate let it pass and begin with the second frame; all others see zeros before it.

Shapes: activations are [B, C, T, H, W]. Module names are those of diffusers' checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldline.models.tape import Tape, per_frame


def after(past: Tensor | None, x: Tensor, frames: int) -> Tensor:
    """x with its past in front of it; `frames` zeros where there is none."""
    return F.pad(x, (0, 0, 0, 0, frames, 0)) if past is None else torch.cat([past.to(x.dtype), x], dim=2)


class CausalConv3d(nn.Conv3d):
    """3 x 3 x 3 over the frame and the two before it."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor, tape: Tape) -> Tensor:  # type: ignore[override]
        past, frames = tape.past(), x.shape[2]
        x = after(past, x, 2)
        tape.keep(x[:, :, -2:])
        if past is None and frames == 1:  # zeros before: two thirds of the kernel would multiply them
            return F.conv3d(x[:, :, 2:], self.weight[:, :, 2:], self.bias, padding=self.padding)
        return super().forward(x)


class ChannelNorm(nn.Module):
    """x / rms(x) * gamma over channels, in fp32. `axes`: axes after the channels, as the checkpoints store gamma."""

    def __init__(self, width: int, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=1).to(x.dtype) * x.shape[1] ** 0.5 * self.gamma


class ResBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = ChannelNorm(width), CausalConv3d(width, out)
        self.norm2, self.conv2 = ChannelNorm(out), CausalConv3d(out, out)
        self.conv_shortcut = nn.Identity() if width == out else nn.Conv3d(width, out, 1)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), tape)
        return self.conv2(F.silu(self.norm2(h)), tape) + self.conv_shortcut(x)


class FrameAttention(nn.Module):
    """Self-attention with one head among the positions of each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, axes=2)
        self.to_qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + per_frame(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(self.norm(x)), "n (three c) h w -> three n 1 (h w) c", three=3).unbind()
        h = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(h, "n 1 (h w) c -> n c h w", h=x.shape[2]))


class MidBlock(nn.Module):
    """ResBlock, attention, ResBlock at the coarsest level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(width)])
        self.resnets = nn.ModuleList([ResBlock(width, width), ResBlock(width, width)])

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, tape)), tape)


class Downsample(nn.Module):
    """Half the picture and, with `time`, half the frame rate: of frames 0, 1 2, 3 4, ... the first and one per pair."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))
        self.time_conv = nn.Conv3d(width, width, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        x = per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        past = tape.past()
        tape.keep(x[:, :, -1:])
        if past is not None:
            return self.time_conv(after(past, x, 1))
        return x if x.shape[2] == 1 else torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Twice the picture and, with `time`, twice the frame rate of all frames but the first."""

    def __init__(self, width: int, out: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, out, 3, padding=1))
        self.time_conv = nn.Conv3d(width, 2 * width, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        if self.time_conv is not None:
            past = tape.past()
            alone, rest = (x[:, :, :1], x[:, :, 1:]) if past is None else (x[:, :, :0], x)
            rest = after(past, rest, 2)  # the lone first frame is no past of the others
            tape.keep(rest[:, :, -2:])
            if rest.shape[2] > 2:
                doubled = rearrange(self.time_conv(rest), "b (two c) t h w -> b c (t two) h w", two=2)
                x = torch.cat([alone, doubled], dim=2)
        return per_frame(self.resample, x)


def average_down(x: Tensor, out: int, time: int, space: int) -> Tensor:
    """Fold time x space x space cells into channels and average groups of them down to `out` channels."""
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))  # zeros before the lone first frame
    x = rearrange(x, "b c (t a) (h p) (w q) -> b (c a p q) t h w", a=time, p=space, q=space)
    return x.unflatten(1, (out, -1)).mean(dim=2)


def repeat_up(x: Tensor, out: int, time: int, space: int, first: bool) -> Tensor:
    """Repeat channels and unfold them into time x space x space cells; `first`: the first frame stays one frame."""
    x = x.repeat_interleave(out * time * space * space // x.shape[1], dim=1)
    x = rearrange(x, "b (c a p q) t h w -> b c (t a) (h p) (w q)", a=time, p=space, q=space)
    return x[:, :, time - 1 :] if first else x


class ResidualDown(nn.Module):
    """A Wan2.2 level of the encoder: residual blocks and a step down (`halve`), around them an averaging shortcut."""

    def __init__(self, width: int, out: int, blocks: int, halve: bool, time: bool) -> None:
        super().__init__()
        self.out, self.space, self.time = out, 1 + halve, 1 + time
        self.resnets = nn.ModuleList(ResBlock(width if i == 0 else out, out) for i in range(blocks))
        self.downsampler = Downsample(out, time) if halve else None

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        shortcut = average_down(x, self.out, self.time, self.space)
        for block in self.resnets:
            x = block(x, tape)
        return shortcut + (x if self.downsampler is None else self.downsampler(x, tape))


class UpLevel(nn.Module):
    """A Wan2.1 level of the decoder: residual blocks, and a step up that halves the channels (`double`)."""

    def __init__(self, width: int, out: int, blocks: int, double: bool, time: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width if i == 0 else out, out) for i in range(blocks))
        self.upsamplers = nn.ModuleList([Upsample(out, out // 2, time)] if double else [])

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x, tape)
        return x


class ResidualUp(nn.Module):
    """A Wan2.2 level of the decoder: residual blocks and a step up, around them a repeating shortcut (`double`)."""

    def __init__(self, width: int, out: int, blocks: int, double: bool, time: bool) -> None:
        super().__init__()
        self.out, self.time = out, 1 + time
        self.resnets = nn.ModuleList(ResBlock(width if i == 0 else out, out) for i in range(blocks))
        self.upsampler = Upsample(out, out, time) if double else None

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        h = x
        for block in self.resnets:
            h = block(h, tape)
        if self.upsampler is None:
            return h
        return self.upsampler(h, tape) + repeat_up(x, self.out, self.time, 2, tape.first)
