"""A block of HunyuanVideo-1.5: two streams that meet in attention.

Legend: B batch, T latent frames, S tokens a frame, L = T S tokens, N heads, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.functional.rope import apply_rope
from worldline.models.backbone import TransformerBlock
from worldline.models.conditions import Modulation
from worldline.models.hunyuan15.config import HunyuanConfig
from worldline.nn.attention import Always, attention
from worldline.nn.camera import act
from worldline.nn.layers import AdaNorm, FeedForward, RMSNorm, modulated_norm
from worldline.nn.seen import Seen


def modulation(clock: Tensor, norm: AdaNorm) -> Modulation:
    """clock [B, T, D] -> what it does to one stream of a block."""
    shift1, scale1, gate1, shift2, scale2, gate2 = norm(clock)
    return Modulation(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)


class Prompt(NamedTuple):
    """The prompt's stream within a joint pass."""

    tokens: Tensor  # [B, L_text, D] fp32
    clock: Tensor  # [B, 1, D]
    valid: Tensor | None  # bool [B, L_text]


class JointAttention(nn.Module):
    """Attention of two streams with projections of their own; queries and keys are normed head by head."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__()
        D = cfg.dim
        self.cfg = cfg
        self.to_q, self.to_k, self.to_v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.to_out = nn.ModuleList([nn.Linear(D, D)])
        self.norm_q, self.norm_k = RMSNorm(cfg.head_dim, cfg.eps), RMSNorm(cfg.head_dim, cfg.eps)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.to_add_out = nn.Linear(D, D)
        self.norm_added_q, self.norm_added_k = RMSNorm(cfg.head_dim, cfg.eps), RMSNorm(cfg.head_dim, cfg.eps)
        if cfg.camera == "branch":
            self.prope_o = nn.Linear(D, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.cfg.num_heads, -1))

    def prompt(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [B, L_text, D] -> queries, keys and values [B, N, L_text, Dh]."""
        q, k = self.norm_added_q(self._heads(self.add_q_proj(x))), self.norm_added_k(self._heads(self.add_k_proj(x)))
        v = self._heads(self.add_v_proj(x))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def video(
        self, x: Tensor, rope: tuple[Tensor, Tensor], seen: Seen, layer: int, text: Always
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: [B, L, D] -> its output [B, L, D], and its keys (rotated) and values [B, L, N, Dh]."""
        q, k = self.norm_q(self._heads(self.to_q(x))), self.norm_k(self._heads(self.to_k(x)))
        v, cam = self._heads(self.to_v(x)), seen.cameras
        q_rope, k_rope = apply_rope(q, *rope), apply_rope(k, *rope)
        if self.cfg.camera == "fused" and cam is not None:
            out = seen.attend((layer, "main"), act(q_rope, cam.query), act(k_rope, cam.key), act(v, cam.key), text)
            out = act(out, cam.out)
        else:
            out = seen.attend((layer, "main"), q_rope, k_rope, v, text)
        out = self.to_out[0](out.flatten(2))
        if self.cfg.camera == "branch" and cam is not None:
            view = seen.attend((layer, "camera"), act(q, cam.query), act(k, cam.key), act(v, cam.key), text)
            if self.cfg.legacy_prope_cache and seen.cache is not None and seen.cache.writing:
                seen.cache.attend((layer, "camera"), k_rope.transpose(1, 2), v.transpose(1, 2), seen.frames)
            out = out + self.prope_o(act(view, cam.out).flatten(2))
        return out, k_rope, v


class Block(TransformerBlock):
    """Joint attention, then a feed-forward, in both streams: x += gate1 attn(mod1(x)); x += gate2 FFN(mod2(x)). Residual
    streams in fp32."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.norm1, self.norm1_context = AdaNorm(cfg.dim, 6), AdaNorm(cfg.dim, 6)
        self.attn = JointAttention(cfg)
        self.ff, self.ff_context = FeedForward(cfg.dim, cfg.ffn_dim), FeedForward(cfg.dim, cfg.ffn_dim)

    def prompt_alone(self, x: Tensor, clock: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """A decoupled prompt: x [B, L_text, D] attends to itself. Returns it, and the keys and values it shows the video."""
        mod = modulation(clock, self.norm1_context)
        q, k, v = self.attn.prompt(_normed(x, mod.shift1, mod.factor1, self.eps))
        mask = None if valid is None else valid[:, None, None]
        out = attention(q, k, v) if mask is None else F.scaled_dot_product_attention(q, k, v, mask)
        return self._prompt_after(x, out, mod), k, v

    def _prompt_after(self, x: Tensor, out: Tensor, mod: Modulation) -> Tensor:
        x = x + mod.gate1.squeeze(1) * self.attn.to_add_out(out.transpose(1, 2).flatten(2))
        return x + mod.gate2.squeeze(1) * self.ff_context(_normed(x, mod.shift2, mod.factor2, self.eps))

    def forward(
        self,
        x: Tensor,
        mod: Tensor | Modulation,
        text: Always | Prompt,
        rope: tuple[Tensor, Tensor],
        seen: Seen,
        layer: int,
    ) -> tuple[Tensor, Always | Prompt]:
        """x: [B, T, S, D]; mod: the clock [B, T, D], or what it does to this block, formed before; text: the prompt's keys
        and values, or (joint) its stream, which comes back changed."""
        T = x.shape[1]
        shift1, factor1, gate1, shift2, factor2, gate2 = modulation(mod, self.norm1) if isinstance(mod, Tensor) else mod
        h = modulated_norm(x, shift1, factor1, self.eps).flatten(1, 2)
        if isinstance(text, Prompt):
            out, text = self._joint(h, text, rope, seen, layer)
        else:
            out, _, _ = self.attn.video(h, rope, seen, layer, text)
        x = torch.addcmul(x, gate1, out.unflatten(1, (T, -1)).float())
        h = modulated_norm(x, shift2, factor2, self.eps)
        return torch.addcmul(x, gate2, self.ff(h).float()), text

    def _joint(
        self, h: Tensor, text: Prompt, rope: tuple[Tensor, Tensor], seen: Seen, layer: int
    ) -> tuple[Tensor, Prompt]:
        mod = modulation(text.clock, self.norm1_context)
        q, k, v = self.attn.prompt(_normed(text.tokens, mod.shift1, mod.factor1, self.eps))
        own = Always(k, v, text.valid)
        out, k_video, v_video = self.attn.video(h, rope, seen, layer, own)
        # The prompt knows no cameras: it sees the video as it was pretrained to.
        found = own.attend(q, k_video.transpose(1, 2), v_video.transpose(1, 2))
        return out, text._replace(tokens=self._prompt_after(text.tokens, found, mod))


def _normed(x: Tensor, shift: Tensor, factor: Tensor, eps: float) -> Tensor:
    """LN(x) factor + shift of a prompt [B, L, D] under one clock [B, 1, 1, D]."""
    return modulated_norm(x[:, None], shift, factor, eps)[:, 0]
