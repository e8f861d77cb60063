"""A prompt's sources on their way to the model's width: Qwen's tokens refined, byT5's and SigLIP's projected."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.models.hunyuan15.config import HunyuanConfig
from worldline.nn.attention import attention
from worldline.nn.layers import AdaNorm, TwoLayer, sinusoidal_embedding


class SiLUFeedForward(nn.Module):
    """Linear, SiLU, Linear, with the published key names net.0.proj and net.2."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(dim, inner)}), nn.Identity(), nn.Linear(inner, dim)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[2](F.silu(self.net[0]["proj"](x)))  # type: ignore[index]
        return out


class SelfAttention(nn.Module):
    """Plain self-attention of the token refiner."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.count = heads

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x: [B, L, D]; valid: bool [B, L], the tokens that may be attended to; None where all may."""
        q, k, v = (
            part(x).unflatten(-1, (self.count, -1)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v)
        )
        found = attention(q, k, v) if valid is None else F.scaled_dot_product_attention(q, k, v, valid[:, None, None])
        out: Tensor = self.to_out[0](found.transpose(1, 2).flatten(2))
        return out


class RefinerBlock(nn.Module):
    """Self-attention and feed-forward, each gated by the clock and the prompt's mean."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(cfg.dim, cfg.eps), nn.LayerNorm(cfg.dim, cfg.eps)
        self.attn = SelfAttention(cfg.dim, cfg.num_heads)
        self.ff = SiLUFeedForward(cfg.dim, cfg.refiner_ffn_dim)
        self.norm_out = AdaNorm(cfg.dim, 2)

    def forward(self, x: Tensor, clock: Tensor, valid: Tensor | None) -> Tensor:
        gate1, gate2 = self.norm_out(clock)
        x = x + gate1 * self.attn(self.norm1(x), valid)
        return x + gate2 * self.ff(self.norm2(x))


class TokenRefiner(nn.Module):
    """Qwen's tokens to the model's width, refined under the noise level and their own mean."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__()
        self.freq_dim = cfg.freq_dim
        self.proj_in = nn.Linear(cfg.text_dim, cfg.dim)
        self.time_text_embed = nn.ModuleDict({
            "timestep_embedder": TwoLayer(cfg.freq_dim, cfg.dim, "silu"),
            "text_embedder": TwoLayer(cfg.text_dim, cfg.dim, "silu"),
        })  # fmt: skip
        blocks = nn.ModuleList(RefinerBlock(cfg) for _ in range(cfg.refiner_layers))
        self.token_refiner = nn.ModuleDict({"refiner_blocks": blocks})

    def forward(self, tokens: Tensor, valid: Tensor | None, sigma: Tensor) -> Tensor:
        """tokens: [B, L, text_dim]; valid: bool [B, L], None where all are; sigma: [B] -> [B, L, D] fp32."""
        embed = self.time_text_embed
        with torch.autocast(tokens.device.type, enabled=False):
            known = tokens.new_ones(tokens.shape[:2], dtype=torch.float32) if valid is None else valid.float()
            mean = (tokens.float() * known[..., None]).sum(dim=1) / known.sum(dim=1, keepdim=True)
            clock = embed["timestep_embedder"](sinusoidal_embedding(1000.0 * sigma.float(), self.freq_dim))
            clock = clock + embed["text_embedder"](mean)
        x: Tensor = self.proj_in(tokens).float()
        for block in self.token_refiner["refiner_blocks"]:  # type: ignore[attr-defined]
            x = block(x, clock, valid)
        return x


class WordProjection(nn.Module):
    """byT5's tokens of quoted words to the model's width."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(cfg.byt5_dim)
        self.linear_1 = nn.Linear(cfg.byt5_dim, cfg.byt5_hidden)
        self.linear_2 = nn.Linear(cfg.byt5_hidden, cfg.byt5_hidden)
        self.linear_3 = nn.Linear(cfg.byt5_hidden, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_3(F.gelu(self.linear_2(F.gelu(self.linear_1(self.norm(x))))))
        return out


class ImageProjection(nn.Module):
    """SigLIP's tokens of the start image to the model's width."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(cfg.image_dim), nn.LayerNorm(cfg.dim)
        self.linear_1, self.linear_2 = nn.Linear(cfg.image_dim, cfg.image_dim), nn.Linear(cfg.image_dim, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm_out(self.linear_2(F.gelu(self.linear_1(self.norm_in(x)))))
        return out


def compact(tokens: Tensor, valid: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Valid tokens of each prompt first, as many as the longest has: tokens [B, M, W], valid bool [B, M]. whole: all
    are valid."""
    if whole:
        return tokens, valid
    longest = int(valid.sum(dim=1).max())
    order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    found = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    return found, valid.gather(1, order)
