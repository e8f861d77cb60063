"""The Wan video diffusion transformer: config, block, model, forward (Wan2.1; keys as diffusers names them).

What is unusual: one noise level per latent frame, so modulation is computed per frame and broadcast to its tokens; RoPE
positions are data; text keys and values are made once per prompt; the visible past comes from a cache (streaming) or a
mask (one pass), through the same code. The camera enters by PRoPE (`branch`, `fused`), as rays beside the latents
(`plucker`) or as tokens to attend to (`cross`); motion and discrete actions, beside any of these, by AdaLN.

Legend: B batch, T latent frames, C channels, H W latent grid, S tokens a frame, L = T S tokens, N heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldline import dist
from worldline.functional.prope import projection_matrices
from worldline.functional.rays import plucker_rays
from worldline.functional.rope import apply_rope, rope_of_grid
from worldline.models.backbone import Backbone, TextContext, TransformerBlock
from worldline.models.conditions import Conditions, Modulation, Placement, Steered
from worldline.nn.attention import FrameMask, attention
from worldline.nn.camera import CameraMatrices, act, block_diagonal
from worldline.nn.kv_cache import KVCache, Stream
from worldline.nn.layers import (
    FeedForward,
    PatchEmbedding,
    RMSNorm,
    TwoLayer,
    modulated_norm,
    sinusoidal_embedding,
)
from worldline.nn.packed import pack_projections
from worldline.nn.quant import QuantLinear
from worldline.nn.seen import Seen
from worldline.schema import Cameras, ShapeError, TextEmbedding, WorldlineError

CameraMode = Literal["none", "branch", "fused", "plucker", "cross"]
# Parts that compute in fp32 whatever the compute type.
FP32 = (*(f"condition_embedder.{part}" for part in ("time", "motion", "action")), "camera_embedder")


@dataclass(frozen=True)
class WanConfig:
    """Sizes of a Wan transformer; a variant is spelled out where it is named."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    text_dim: int
    text_len: int
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    freq_dim: int = 256
    eps: float = 1e-6
    camera: CameraMode = "none"
    camera_share: float = 0.5  # share of each head's dims that carry the camera in `fused`
    motion: bool = False  # also modulate every frame by the camera's motion since the frame before (AdaLN)
    # And by so many discrete actions (AdaLN). Read off the camera's motion where they are 10, or freq_dim: WorldPlay's labels.
    actions: int = 0

    # What may differ from the pretrained model whose weights are loaded: parts of their own.
    FREE: ClassVar = ("camera", "camera_share", "motion", "actions")

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 4:
            raise WorldlineError(f"dim {self.dim} over {self.num_heads} heads: expected a head width divisible by 4")
        if self.patch_size[0] != 1:
            raise WorldlineError(f"patch_size {self.patch_size}: expected 1 latent frame a patch in time")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    @property
    def camera_dims(self) -> int:
        """Head dims that carry the camera, a multiple of four (groups) and of two (RoPE pairs): all of a `branch`."""
        return self.head_dim if self.camera == "branch" else int(self.head_dim * self.camera_share) // 4 * 4

    @property
    def rotary(self) -> tuple[float, tuple[int, int, int] | None]:
        """Base of the rotary frequencies; how many pairs turn with time, row and column (None: as `rope_angles` says)."""
        return 1e4, None


WAN_VARIANTS = {
    "nano": WanConfig(dim=256, ffn_dim=1024, num_heads=4, num_layers=6, text_dim=64, text_len=24),
    "wan2.1-t2v-1.3b": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, text_dim=4096, text_len=512),
    "wan2.2-ti2v-5b": WanConfig(
        dim=3072,
        ffn_dim=14336,
        num_heads=24,
        num_layers=30,
        text_dim=4096,
        text_len=512,
        in_channels=48,
        out_channels=48,
    ),
}


class Attention(nn.Module):
    """Projections with RMS-normed queries and keys; self-attention adds the camera, cross-attention the prompt."""

    def __init__(self, cfg: WanConfig, *, camera: CameraMode = "none") -> None:
        super().__init__()
        D = cfg.dim
        self.cfg, self.camera = cfg, camera
        self.to_q, self.to_k, self.to_v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.to_out = nn.ModuleList([nn.Linear(D, D)])
        self.norm_q, self.norm_k = RMSNorm(D, cfg.eps), RMSNorm(D, cfg.eps)
        if camera == "branch":
            self.prope_o = nn.Linear(D, D)

    def heads(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, N, Dh]."""
        return x.unflatten(-1, (self.cfg.num_heads, -1))

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded prompt [B, L_text, D] -> keys and values [B, N, L_text, Dh]."""
        k, v = self.heads(self.norm_k(self.to_k(text))), self.heads(self.to_v(text))
        return k.transpose(1, 2), v.transpose(1, 2)

    def cross(self, x: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        """x: [B, L, D] attends to the prompt, without a mask, as Wan was trained."""
        q = self.heads(self.norm_q(self.to_q(x))).transpose(1, 2)
        out = attention(q, kv[0].to(q.dtype), kv[1].to(q.dtype))
        return self.to_out[0](out.transpose(1, 2).flatten(2))

    def fuse(self) -> None:
        """Queries, keys and values by one product, normed and turned together: fewer launches, for inference alone."""
        parts = (self.to_q, self.to_k, self.to_v)
        if isinstance(self.to_q, QuantLinear):
            self.to_qkv: nn.Module = QuantLinear.joined(parts)
        else:
            joined = nn.Linear(self.cfg.dim, 3 * self.cfg.dim, device="meta")
            joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
            joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]))
            self.to_qkv = joined
        self.norm_qk = nn.Parameter(torch.stack([self.norm_q.weight, self.norm_k.weight]))
        del self.to_q, self.to_k, self.to_v, self.norm_q, self.norm_k

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x: [B, L, D] -> queries, keys, both again after RoPE, and values, [B, L, N, Dh] each."""
        if not hasattr(self, "to_qkv"):
            q, k = self.heads(self.norm_q(self.to_q(x))), self.heads(self.norm_k(self.to_k(x)))
            return q, k, apply_rope(q, *rope), apply_rope(k, *rope), self.heads(self.to_v(x))
        qkv = self.to_qkv(x).unflatten(-1, (3, -1))  # [B, L, 3, D]
        width, v = qkv.shape[-1:], self.heads(qkv[..., 2, :])
        qk = F.rms_norm(qkv[..., :2, :].float(), width, eps=self.cfg.eps) * self.norm_qk
        pair = self.heads(qk).flatten(-3, -2)  # [B, L, 2 N, Dh]
        q, k = pair.to(v.dtype).chunk(2, dim=-2)
        q_rope, k_rope = apply_rope(pair, *rope).to(v.dtype).chunk(2, dim=-2)
        return q, k, q_rope, k_rope, v

    def self_attention(self, x: Tensor, rope: tuple[Tensor, Tensor], seen: Seen, layer: int) -> Tensor:
        """x: [B, L, D] -> [B, L, D]."""
        q, k, q_rope, k_rope, v = self.project(x, rope)
        cam = seen.cameras
        if self.camera == "fused" and cam is not None:
            q, k, v = act(q_rope, cam.query), act(k_rope, cam.key), act(v, cam.key)
            out = act(seen.attend((layer, "main"), q, k, v), cam.out)
        else:
            out = seen.attend((layer, "main"), q_rope, k_rope, v)
        out = self.to_out[0](out.flatten(2))
        if self.camera == "branch" and cam is not None:
            q, k, v = act(q, cam.query), act(k, cam.key), act(v, cam.key)
            view = act(seen.attend((layer, "camera"), q, k, v), cam.out)
            out = out + self.prope_o(view.flatten(2))
        return out


class Block(TransformerBlock):
    """x += gate1 SelfAttn(mod1(x)); x += CrossAttn(norm2(x)); x += gate2 FFN(mod2(x)). Residual stream in fp32."""

    def __init__(self, cfg: WanConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.attn1 = Attention(cfg, camera=cfg.camera)
        self.attn2 = Attention(cfg)
        self.norm2 = nn.LayerNorm(cfg.dim, cfg.eps)
        if cfg.camera == "cross":
            self.norm3, self.attn3 = nn.LayerNorm(cfg.dim, cfg.eps), Attention(cfg)
        self.ffn = FeedForward(cfg.dim, cfg.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, cfg.dim) / cfg.dim**0.5)

    def modulation(self, mod: Tensor) -> Modulation:
        """mod: [..., 6, D] fp32, the clock's, of all blocks -> this block's own."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + mod).unsqueeze(-2).unbind(-3)
        return Modulation(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded prompt [B, L_text, D] -> this block's keys and values [B, N, L_text, Dh]."""
        return self.attn2.text_kv(text)

    def forward(
        self,
        x: Tensor,
        mod: Tensor | Modulation,
        text: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        seen: Seen,
        layer: int,
    ) -> Tensor:
        """x: [B, T, S, D]; mod: [B, T, 6, D] fp32, or this block's own, formed before."""
        T = x.shape[1]
        shift1, factor1, gate1, shift2, factor2, gate2 = self.modulation(mod) if isinstance(mod, Tensor) else mod
        h = modulated_norm(x, shift1, factor1, self.eps).flatten(1, 2)
        x = torch.addcmul(x, gate1, self.attn1.self_attention(h, rope, seen, layer).unflatten(1, (T, -1)).float())
        h = F.layer_norm(x, x.shape[-1:], self.norm2.weight, self.norm2.bias, self.eps).flatten(1, 2)
        x = x + self.attn2.cross(h, text).unflatten(1, (T, -1))
        if seen.camera_tokens is not None:
            h = F.layer_norm(x, x.shape[-1:], self.norm3.weight, self.norm3.bias, self.eps).flatten(0, 1)
            x = x + self.attn3.cross(h, self.attn3.text_kv(seen.camera_tokens)).view(x.shape)
        h = modulated_norm(x, shift2, factor2, self.eps)
        return torch.addcmul(x, gate2, self.ffn(h).float())


class CameraTokens(nn.Module):
    """A frame's camera as four tokens, the rows of P = lift(K) w2c, for cross-attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rows = TwoLayer(4, dim, "silu")
        self.which = nn.Parameter(torch.randn(4, dim) / dim**0.5)

    def forward(self, cameras: Cameras) -> Tensor:
        """[B * T, 4, D] fp32."""
        with torch.autocast(cameras.w2c.device.type, enabled=False):
            P, _ = projection_matrices(cameras.w2c.float(), cameras.K.float())
            return (self.rows(P) + self.which).flatten(0, 1)


class ConditionEmbedder(Steered):
    """Clock and prompt: [cos|sin] -> MLP -> six modulation vectors; text -> MLP."""

    def __init__(self, cfg: WanConfig) -> None:
        super().__init__(cfg.dim, cfg.freq_dim, motion=cfg.motion, actions=cfg.actions)
        self.time_embedder = TwoLayer(cfg.freq_dim, cfg.dim, "silu")
        self.time_proj = nn.Linear(cfg.dim, 6 * cfg.dim)
        self.text_embedder = TwoLayer(cfg.text_dim, cfg.dim, "gelu")

    def time(self, sigma: Tensor, cameras: Cameras | None) -> tuple[Tensor, Tensor]:
        """sigma [B, T] -> (temb [B, T, D], modulation [B, T, 6, D]), fp32 throughout; cameras add what they did."""
        with torch.autocast(sigma.device.type, enabled=False):
            temb = self.time_embedder(sinusoidal_embedding(1000.0 * sigma.float(), self.freq_dim))
            temb = self.steered(temb, cameras)
            return temb, self.time_proj(F.silu(temb)).unflatten(-1, (6, -1))


class WanModel(Backbone):
    """Predicts velocity = eps - x0 for every latent frame."""

    def __init__(self, cfg: WanConfig) -> None:
        super().__init__()
        self.config = cfg
        self.patch_embedding = PatchEmbedding(cfg.in_channels, cfg.dim, cfg.patch_size)
        self.condition_embedder = ConditionEmbedder(cfg)
        if cfg.camera == "plucker":  # equals latents with the rays' channels beside them
            self.ray_embedding = PatchEmbedding(6, cfg.dim, cfg.patch_size)
        if cfg.camera == "cross":
            self.camera_embedder = CameraTokens(cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.num_layers))
        _, ph, pw = cfg.patch_size
        self.proj_out = nn.Linear(cfg.dim, cfg.out_channels * ph * pw)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, cfg.dim) / cfg.dim**0.5)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier projections, small embedders, zero head; the camera branch starts silent."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for embedder in (self.condition_embedder.time_embedder, self.condition_embedder.text_embedder):
            nn.init.normal_(embedder.linear_1.weight, std=0.02)
            nn.init.normal_(embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(self.proj_out.weight)
        self.silence()

    def silence(self) -> None:
        """Zero the last layer of all that steers, so that training starts from the pretrained model exactly."""
        self.condition_embedder.silence()
        steering: list[nn.Module] = [self.ray_embedding] if self.config.camera == "plucker" else []
        for block in self._blocks():
            steering += [block.attn1.prope_o] if self.config.camera == "branch" else []
            steering += [block.attn3.to_out] if self.config.camera == "cross" else []
        for parameter in (p for layer in steering for p in layer.parameters()):
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def freeze(self, dtype: torch.dtype = torch.float32) -> WanModel:
        """For inference alone, in place: one product for queries, keys and values, and the weights of matrix products in
        `dtype` once instead of in every call (bf16 is for use under autocast, whose rounding this is), on a CPU also in the
        order its kernels want. What autocast leaves in fp32 stays. A frozen model cannot be trained, adapted, saved or moved
        to another device; freezing it again does nothing."""
        if self.frozen:
            return self
        attentions = [block.attn1 for block in self._blocks()]
        for parts in ([attn.to_q, attn.to_k, attn.to_v] for attn in attentions):
            kinds = {type(part) for part in parts}
            if kinds not in ({nn.Linear}, {QuantLinear}):
                names = ", ".join(sorted(kind.__name__ for kind in kinds))
                raise WorldlineError(
                    f"queries, keys and values are {names}; expected Linear in all three, or QuantLinear: merge adapters first"
                )
        for attn in attentions:
            attn.fuse()
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv3d)) and not name.startswith(FP32):
                module.to(dtype)
        for block in self._blocks():
            pack_projections(block)
        return self.eval().requires_grad_(False)

    @property
    def frozen(self) -> bool:
        """Whether `freeze` has laid the weights out for inference."""
        return hasattr(self._blocks()[0].attn1, "to_qkv")

    def text_context(self, text: TextEmbedding) -> TextContext:
        """Embed a prompt and make every layer's keys and values once. Padding is attended as zeros, as in Wan."""
        if text.tokens.shape[-1] != self.config.text_dim:
            raise ShapeError(
                f"text of width {text.tokens.shape[-1]} ({text.fingerprint or 'unknown encoder'}): this model expects "
                f"{self.config.text_dim}; encode the prompt with its own text encoder"
            )
        embedded = self.condition_embedder.text_embedder(text.tokens * text.mask[..., None])
        return TextContext(tuple(block.text_kv(embedded) for block in self._blocks()))

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame."""
        _, ph, pw = self.config.patch_size
        return (height // ph) * (width // pw)

    def rope(self, positions: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        """positions: latent index of every frame [T] -> (cos, sin) for T rows cols tokens, frame-major."""
        return rope_of_grid(positions, rows, cols, self.config.head_dim, device=self.proj_out.weight.device)

    def placement(self, like: Tensor, cameras: Cameras | None, positions: Tensor) -> Placement:
        """Rotations, camera matrices, tokens and rays for latents `like` [B, T, C, H, W] at `positions` [T]."""
        H, W = like.shape[-2:]
        _, ph, pw = self.config.patch_size
        matrices = camera_tokens = rays = None
        if cameras is not None and self.config.camera in ("branch", "fused"):
            matrices = CameraMatrices.from_cameras(
                cameras, self.config.camera_dims, self.config.head_dim, (H // ph) * (W // pw) * self.config.num_heads
            )
        elif cameras is not None and self.config.camera == "plucker":
            with torch.autocast(like.device.type, enabled=False):
                rays = plucker_rays(cameras.w2c.float(), cameras.K.float(), H, W)
            rays = self.ray_embedding(rays)
        elif cameras is not None and self.config.camera == "cross":
            camera_tokens = self.camera_embedder(cameras)
        cos, sin = self.rope(positions, H // ph, W // pw)
        if dist.sequence() > 1:
            frames = len(positions)
            cos, sin = (dist.own_tokens(x.unflatten(0, (frames, -1)), 1).flatten(0, 1) for x in (cos, sin))
            rays = None if rays is None else dist.own_tokens(rays, 2)
        return Placement((cos, sin), matrices, camera_tokens, rays)

    @torch.no_grad()
    def conditions(
        self, levels: Sequence[float], like: Tensor, cameras: Cameras | None, start: int
    ) -> list[Conditions]:
        """The clock of all noise levels of a chunk in one pass, its rotations and its cameras once: few-step sampling asks
        the same levels again and again. like: [B, T, C, H, W]; start: index of its first latent."""
        B, T = like.shape[:2]
        self.check(like, cameras)
        placement = self.placement(like, cameras, torch.arange(start, start + T, device=like.device))
        # Filled in on the device: a copy from the host would wait for it.
        sigma = torch.cat([torch.full((B, T), level, device=like.device) for level in levels])
        temb, mod = self.condition_embedder.time(sigma, None if cameras is None else cameras.tile(batch=len(levels)))
        tables = torch.stack([block.scale_shift_table[0] for block in self._blocks()])  # [layers, 6, D]
        mods = tables[:, :, None, None, None] + mod.unflatten(0, (-1, B)).movedim(3, 1).unsqueeze(1).unsqueeze(-2)
        mods[:, :, 1::3] += 1  # [levels, layers, 6, B, T, 1, D]: scales become factors
        heads = torch.stack(self._head(temb)).unflatten(1, (-1, B)).unbind(1)
        return [Conditions(placement, *parts) for parts in zip(mods.unbind(0), heads, strict=True)]

    def _head(self, temb: Tensor) -> tuple[Tensor, Tensor]:
        """temb: [B, T, D] -> shift and factor of the last norm, [B, T, 1, D]."""
        shift, scale = (self.scale_shift_table + temb[:, :, None]).unsqueeze(3).unbind(2)
        return shift, 1 + scale

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        text: TextContext,
        *,
        cameras: Cameras | None = None,
        positions: Tensor | None = None,
        mask: FrameMask | None = None,
        cache: KVCache | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """x: [B, T, C, H, W] noised latents; sigma: [B, T]; cameras: of the same T frames; positions: [T] latent index of
        every frame (default: 0.., or following the cache); mask: which of the T frames sees which; cache: the clean past
        (with a mask, an empty one: the T frames are all there is); conditions: formed before, they stand for sigma, cameras
        and positions. Returns velocity [B, T, C, H, W] in fp32."""
        self.check(x, cameras, sigma)
        T, _, H, W = x.shape[1:]
        _, ph, pw = self.config.patch_size
        mods: Sequence[Tensor | Modulation]
        if conditions is None:
            if positions is None:
                start = 0 if cache is None else cache.frames
                positions = torch.arange(start, start + T, device=x.device)
            placement = self.placement(x, cameras, positions)
            temb, mod = self.condition_embedder.time(sigma, cameras)
            mods, (shift, factor) = [mod] * self.config.num_layers, self._head(temb)
        else:
            placement, (shift, factor) = conditions.placement, conditions.head.unbind(0)
            mods = [Modulation(*own.unbind(0)) for own in conditions.blocks.unbind(0)]
        h = self.patch_embedding(x).float()  # [B, T, S, D]
        shared = dist.sequence() > 1  # then S is this process's part of every frame's tokens, until the last projection
        h = dist.own_tokens(h, 2) if shared else h
        h = h if placement.rays is None else h + placement.rays
        seen = Seen(T, placement.cameras, placement.camera_tokens, mask, cache)
        for layer, block in enumerate(self._blocks()):
            h = block(h, mods[layer], text.layers[layer], placement.rope, seen, layer)
        out = self.proj_out(modulated_norm(h, shift, factor, self.config.eps)).float()
        out = dist.all_tokens(out, 2) if shared else out
        return rearrange(out, "b t (h w) (p q c) -> b t c (h p) (w q)", h=H // ph, w=W // pw, p=ph, q=pw)

    @property
    def turns(self) -> bool:
        """Queries and keys are turned by their position over the whole head, as `rollout.positions` knows it."""
        return True

    @property
    def reanchors(self) -> bool:
        """PRoPE knows relative cameras alone; rays and camera tokens are in the world frame they were written in."""
        return self.config.camera not in ("plucker", "cross")

    def reanchor(self, cache: KVCache, world: Tensor) -> None:
        """Move the cache to a new world frame: world [B, 4, 4] maps old to new world points, so P_new^-1 = world P^-1."""
        carrier = {"fused": "main", "branch": "camera"}.get(self.config.camera)
        matrix = block_diagonal(
            world.mT[:, None], self.config.camera_dims, self.config.camera_dims
        )  # one for all tokens

        def move(stream: Stream, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            if stream[1] != carrier:
                return k, v
            moved = (act(x.transpose(1, 2), matrix).transpose(1, 2) for x in (k, v))  # all tokens as of one frame
            return next(moved), next(moved)

        cache.transform(move)
