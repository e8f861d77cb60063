"""Layers of HunyuanVideo-1.5's autoencoder that run over a stream: each sees what came before its input through a `Tape`.

Everything beyond an edge, in time and space, repeats the edge. The first frame of a clip stands alone: steps in time let it pass.
Steps fold pixels into channels and back, with a shortcut that averages or repeats channels. At the coarsest level every
position attends to all positions of its own frame and of the frames before it: that past is part of the stream.

Shapes: activations are [B, C, T, H, W]. Module names are those of diffusers' checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldline.models.tape import Tape
from worldline.models.wan_vae.layers import ChannelNorm


class CausalConv3d(nn.Module):
    """3 x 3 x 3 over the frame and the two before it."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, out, 3)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        past = tape.past()
        past = x[:, :, :1].expand(-1, -1, 2, -1, -1) if past is None else past.to(x.dtype)
        x = torch.cat([past, x], dim=2)
        tape.keep(x[:, :, -2:])
        found: Tensor = self.conv(F.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate"))
        return found


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


class PastAttention(nn.Module):
    """Self-attention with one head: a frame's positions see those of its own and of all frames before it."""

    def __init__(self, width: int, window: int | None) -> None:
        super().__init__()
        self.norm, self.window = ChannelNorm(width), window
        self.to_q, self.to_k, self.to_v = (nn.Conv3d(width, width, 1) for _ in range(3))
        self.proj_out = nn.Conv3d(width, width, 1)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        T, H = x.shape[2:4]
        h = self.norm(x)
        q, k, v = (rearrange(part(h), "b c t h w -> b 1 t (h w) c") for part in (self.to_q, self.to_k, self.to_v))
        past = tape.past()
        both = torch.stack([k, v])  # [2, B, 1, T, S, C]
        both = both if past is None else torch.cat([past.to(both.dtype), both], dim=3)
        tape.keep(both if self.window is None else both[:, :, :, -self.window :])
        rows = []
        for t in range(T):  # no mask: a frame is one call over the frames it sees
            stop = both.shape[3] - T + t + 1
            start = 0 if self.window is None else max(0, stop - 1 - self.window)
            k, v = both[:, :, :, start:stop].flatten(3, 4).unbind()
            rows.append(F.scaled_dot_product_attention(q[:, :, t], k, v))
        out: Tensor = self.proj_out(rearrange(torch.stack(rows, dim=2), "b 1 t (h w) c -> b c t h w", h=H))
        return x + out


class MidBlock(nn.Module):
    """ResBlock, attention, ResBlock at the coarsest level."""

    def __init__(self, width: int, window: int | None) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([PastAttention(width, window)])
        self.resnets = nn.ModuleList([ResBlock(width, width), ResBlock(width, width)])

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x, tape), tape), tape)
        return out


def fold(x: Tensor, time: int) -> Tensor:
    """Cells of time x 2 x 2 into channels, the cell's place first."""
    return rearrange(x, "b c (t a) (h p) (w q) -> b (a p q c) t h w", a=time, p=2, q=2)


def unfold(x: Tensor, time: int) -> Tensor:
    """The way back."""
    return rearrange(x, "b (a p q c) t h w -> b c (t a) (h p) (w q)", a=time, p=2, q=2)


def alone(x: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
    """The first frame of a clip, if it is here, and the others."""
    n = 1 if tape.first else 0
    return x[:, :, :n], x[:, :, n:]


class Downsample(nn.Module):
    """Half the picture and, with `time`, half the frame rate of all frames but the first."""

    def __init__(self, width: int, out: int, time: bool) -> None:
        super().__init__()
        self.time, self.out = 1 + time, out
        self.conv = CausalConv3d(width, out // (4 * self.time))

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        h = self.conv(x, tape)
        if self.time == 1:
            return fold(h, 1) + self._mean(fold(x, 1))
        (h0, h), (x0, x) = alone(h, tape), alone(x, tape)
        h = torch.cat([fold(h0, 1).repeat(1, 2, 1, 1, 1), fold(h, 2)], dim=2)
        return h + torch.cat([self._mean(fold(x0, 1)), self._mean(fold(x, 2))], dim=2)

    def _mean(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.out, -1)).mean(dim=2)


class Upsample(nn.Module):
    """Twice the picture and, with `time`, twice the frame rate of all frames but the first."""

    def __init__(self, width: int, out: int, time: bool) -> None:
        super().__init__()
        self.time, self.out = 1 + time, out
        self.conv = CausalConv3d(width, 4 * self.time * out)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        h = self.conv(x, tape)
        if self.time == 1:
            return unfold(h, 1) + unfold(self._repeated(x, 4), 1)
        (h0, h), (x0, x) = alone(h, tape), alone(x, tape)
        # The first frame's two halves would be its two frames in time: it has the first alone.
        h = torch.cat([unfold(h0, 1)[:, : self.out], unfold(h, 2)], dim=2)
        first = unfold(x0, 1).repeat_interleave(4 * self.out // x.shape[1], dim=1)
        rest = unfold(x, 2).repeat_interleave(8 * self.out // x.shape[1], dim=1)
        return h + torch.cat([first, rest], dim=2)

    def _repeated(self, x: Tensor, cells: int) -> Tensor:
        return x.repeat_interleave(cells * self.out // x.shape[1], dim=1)


class Level(nn.Module):
    """Residual blocks, and a step to the next level where there is one."""

    def __init__(self, width: int, out: int, blocks: int, step: nn.Module | None, name: str) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width if i == 0 else out, out) for i in range(blocks))
        self.steps = name
        if step is not None:
            self.add_module(name, nn.ModuleList([step]))

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        for block in (*self.resnets, *getattr(self, self.steps, ())):
            x = block(x, tape)
        return x
