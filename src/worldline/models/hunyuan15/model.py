"""The HunyuanVideo-1.5 diffusion transformer: model, forward (keys as diffusers names them).

Video and prompt are two streams with weights of their own that meet in attention. Two ways to run the prompt's:
- `joint`, as the model was pretrained: the prompt sees the video, in every block, at every step. Whole clips alone.
- `decoupled` (WorldPlay, minWM): the prompt sees itself alone, at clock 0, so its keys and values are made once per prompt and
  the video streams past them. Another function of the same weights: a model is trained into it.

Modulation is computed per latent frame, never per token. A first frame that is given clean (sigma 0 at position 0) is also handed
over beside the noise with a mask of ones, as the image-to-video weights expect it.

Legend: B batch, T latent frames, C channels, H W latent grid, S tokens a frame, L = T S tokens, N heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from worldline import dist
from worldline.functional.rope import rope_of_grid
from worldline.models.backbone import Backbone, TextContext
from worldline.models.conditions import Conditions, Modulation, Placement, Steered
from worldline.models.hunyuan15.block import Block, Prompt, modulation
from worldline.models.hunyuan15.config import BYT5, IMAGE, QWEN, HunyuanConfig
from worldline.models.hunyuan15.prompt import ImageProjection, TokenRefiner, WordProjection, compact
from worldline.nn.attention import Always, FrameMask
from worldline.nn.camera import CameraMatrices
from worldline.nn.kv_cache import KVCache
from worldline.nn.layers import AdaNorm, PatchEmbedding, TwoLayer, modulated_norm, sinusoidal_embedding
from worldline.nn.packed import pack_projections
from worldline.nn.seen import Seen
from worldline.schema import Cameras, ShapeError, TextEmbedding, WorldlineError

# Parts that compute in fp32 whatever the compute type.
FP32 = ("time_embed", "context_embedder.time_text_embed")


class Clock(Steered):
    """Noise level of a frame, and what was done in it, to one vector."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__(cfg.dim, cfg.freq_dim, motion=cfg.motion, actions=cfg.actions)
        self.timestep_embedder = TwoLayer(cfg.freq_dim, cfg.dim, "silu")
        if cfg.meanflow:
            self.timestep_embedder_r = TwoLayer(cfg.freq_dim, cfg.dim, "silu")

    def forward(self, sigma: Tensor, cameras: Cameras | None = None) -> Tensor:
        """sigma: [...] -> [..., D], fp32 throughout."""
        with torch.autocast(sigma.device.type, enabled=False):
            clock = self.timestep_embedder(sinusoidal_embedding(1000.0 * sigma.float(), self.freq_dim))
            return self.steered(clock, cameras)


class HunyuanModel(Backbone):
    """Predicts velocity = eps - x0 for every latent frame."""

    def __init__(self, cfg: HunyuanConfig) -> None:
        super().__init__()
        self.config, self._frozen = cfg, False
        self.x_embedder = nn.ModuleDict({"proj": PatchEmbedding(2 * cfg.in_channels + 1, cfg.dim, cfg.patch_size)})
        if cfg.text_lens[IMAGE]:
            self.image_embedder = ImageProjection(cfg)
        self.context_embedder = TokenRefiner(cfg)
        if cfg.text_lens[BYT5]:
            self.context_embedder_2 = WordProjection(cfg)
        self.time_embed = Clock(cfg)
        self.cond_type_embed = nn.Embedding(3, cfg.dim)
        self.transformer_blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.num_layers))
        self.norm_out = AdaNorm(cfg.dim, 2)
        _, ph, pw = cfg.patch_size
        self.proj_out = nn.Linear(cfg.dim, cfg.out_channels * ph * pw)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier projections, small embedders, gates and head at zero; the camera branch starts silent."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cond_type_embed.weight, std=0.02)
        for embedder in (self.time_embed.timestep_embedder, self.context_embedder.time_text_embed["timestep_embedder"]):
            assert isinstance(embedder, TwoLayer)
            nn.init.normal_(embedder.linear_1.weight, std=0.02)
            nn.init.normal_(embedder.linear_2.weight, std=0.02)
        silent = [module.linear for module in self.modules() if isinstance(module, AdaNorm)]
        for layer in (*silent, self.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.silence()

    def silence(self) -> None:
        """Zero the last layer of all that steers, so that training starts from the pretrained model exactly."""
        self.time_embed.silence()
        for block in self._blocks() if self.config.camera == "branch" else []:
            for parameter in block.attn.prope_o.parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def freeze(self, dtype: torch.dtype = torch.float32) -> HunyuanModel:
        """For inference alone, in place: the weights of matrix products in `dtype` once instead of in every call (bf16 is for
        use under autocast, whose rounding this is), on a CPU also in the order its kernels want. A frozen model cannot be
        trained, adapted, saved or moved to another device; freezing it again does nothing."""
        if self.frozen:
            return self
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv3d)) and not name.startswith(FP32):
                module.to(dtype)
        for block in self._blocks():
            pack_projections(block)
        self._frozen = True
        return self.eval().requires_grad_(False)

    @property
    def frozen(self) -> bool:
        """Whether `freeze` has laid the weights out for inference."""
        return self._frozen

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, under the name all backbones have for them."""
        return self.transformer_blocks

    def _blocks(self) -> list[Block]:
        return [block for block in self.transformer_blocks if isinstance(block, Block)]

    # -- the prompt ----------------------------------------------------------------------------------------------------

    def whole_context(self, text: TextEmbedding) -> TextContext:
        """`text_context` of prompts that fill all their places."""
        return self._context(text, whole=True)

    def text_context(self, text: TextEmbedding) -> TextContext:
        """Decoupled: every layer's keys and values. Joint: the sources' tokens, as the rest changes with the noise level.
        Padding is dropped; where prompts of one batch differ in length, it is masked."""
        return self._context(text, whole=False)

    def _context(self, text: TextEmbedding, *, whole: bool) -> TextContext:
        cfg = self.config
        if text.tokens.shape[-1] != cfg.text_dim or text.tokens.shape[1] not in (cfg.text_lens[QWEN], cfg.text_len):
            raise ShapeError(
                f"text {tuple(text.tokens.shape[1:])} ({text.fingerprint or 'unknown encoder'}): this model expects "
                f"{cfg.text_len} or {cfg.text_lens[QWEN]} tokens of width {cfg.text_dim}; encode the prompt with its own encoder"
            )
        words, others = self._sources(text, whole)
        known = torch.cat([others[1], words[1]], dim=1)
        valid = None if whole or bool(known.all()) else known
        if cfg.text_mode == "joint":
            return TextContext((), valid, (others, words))
        x, clock = self._stream(others[0], words, valid, words[0].new_zeros(len(known), dtype=torch.float32))
        layers = []
        for block in self._blocks():
            x, k, v = block.prompt_alone(x, clock, valid)
            layers.append((k, v))
        return TextContext(tuple(layers), valid)

    def _sources(self, text: TextEmbedding, whole: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(tokens, valid) of Qwen's source as they came [B, L, text_dim], and of the others embedded [B, L, D]."""
        cfg, first = self.config, self.config.text_lens[QWEN]
        mask = text.mask.clone()
        mask[:, 0] = True  # a mean needs something
        words = compact(text.tokens[:, :first], mask[:, :first], whole)
        tokens, valid = [], []
        parts = [(IMAGE, "image_embedder", cfg.image_dim), (BYT5, "context_embedder_2", cfg.byt5_dim)]
        for source, name, width in parts if text.tokens.shape[1] > first else []:
            start, length = first + (cfg.text_lens[BYT5] if source == IMAGE else 0), cfg.text_lens[source]
            if length:
                embedded = getattr(self, name)(text.tokens[:, start : start + length, :width]).float()
                tokens.append(embedded + self.cond_type_embed.weight[source].float())
                valid.append(mask[:, start : start + length])
        if not tokens:
            empty = words[0].new_zeros(len(mask), 0, cfg.dim, dtype=torch.float32)
            return words, (empty, mask[:, :0])
        return words, compact(torch.cat(tokens, dim=1), torch.cat(valid, dim=1), whole)

    def _stream(
        self, others: Tensor, words: tuple[Tensor, Tensor], valid: Tensor | None, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The prompt's stream before the first block at noise levels sigma [B]: tokens [B, L, D] fp32, clock [B, 1, D]. valid:
        None where all tokens are."""
        tokens, known = words
        refined = self.context_embedder(tokens, None if valid is None else known, sigma)
        refined = refined + self.cond_type_embed.weight[QWEN].float()
        return torch.cat([others, refined], dim=1), self.time_embed(sigma[:, None])

    # -- the video -----------------------------------------------------------------------------------------------------

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame."""
        _, ph, pw = self.config.patch_size
        return (height // ph) * (width // pw)

    def placement(self, like: Tensor, cameras: Cameras | None, positions: Tensor) -> Placement:
        """Rotations and camera matrices for latents `like` [B, T, C, H, W] at `positions` [T]."""
        cfg = self.config
        _, ph, pw = cfg.patch_size
        matrices = None
        if cameras is not None and cfg.camera != "none":
            matrices = CameraMatrices.from_cameras(
                cameras, cfg.camera_dims, cfg.head_dim, self.tokens_per_frame(*like.shape[-2:]) * cfg.num_heads
            )
        t, h, w = cfg.rope_dims
        cos, sin = rope_of_grid(
            positions, like.shape[-2] // ph, like.shape[-1] // pw, cfg.head_dim,
            device=self.proj_out.weight.device, theta=cfg.rope_theta, sizes=(t // 2, h // 2, w // 2),
        )  # fmt: skip
        if dist.sequence() > 1:
            frames = len(positions)
            cos, sin = (dist.own_tokens(x.unflatten(0, (frames, -1)), 1).flatten(0, 1) for x in (cos, sin))
        return Placement((cos, sin), matrices)

    @torch.no_grad()
    def conditions(
        self, levels: Sequence[float], like: Tensor, cameras: Cameras | None, start: int
    ) -> list[Conditions]:
        """The modulation of all blocks for all noise levels of a chunk in one pass, its rotations and its cameras once: a
        third of a block's weights are its modulation's. like: [B, T, C, H, W]; start: index of its first latent."""
        if self.config.text_mode == "joint":
            return []
        B, T = like.shape[:2]
        self.check(like, cameras)
        positions = torch.arange(start, start + T, device=like.device)
        placement = self.placement(like, cameras, positions)
        # Filled in on the device: a copy from the host would wait for it.
        sigma = torch.cat([torch.full((B, T), level, device=like.device) for level in levels])
        clock = self.time_embed(sigma, None if cameras is None else cameras.tile(batch=len(levels)))
        mods = torch.stack([torch.stack(modulation(clock, block.norm1)) for block in self._blocks()])
        mods = mods.unflatten(2, (-1, B)).movedim(2, 0)  # [levels, layers, 6, B, T, 1, D]
        heads = torch.stack(self._head(clock)).unflatten(1, (-1, B)).unbind(1)
        given = [self._given(s, positions) for s in sigma.unflatten(0, (-1, B))]
        return [Conditions(placement, *parts) for parts in zip(mods.unbind(0), heads, given, strict=True)]

    def _head(self, clock: Tensor) -> tuple[Tensor, Tensor]:
        """clock: [B, T, D] -> shift and factor of the last norm, [B, T, 1, D]."""
        scale, shift = self.norm_out(clock)
        return shift, 1 + scale

    @staticmethod
    def _given(sigma: Tensor, positions: Tensor) -> Tensor:
        """[B, T], 1 for a first frame that is clean."""
        return ((sigma == 0) & (positions.to(sigma.device) == 0)).float()

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
        """As `WanModel.forward`. A joint model takes whole clips alone: it raises WorldlineError where a mask or a cache says
        that frames do not see each other."""
        self.check(x, cameras, sigma)
        T, _, H, W = x.shape[1:]
        _, ph, pw = self.config.patch_size
        mods: Sequence[Tensor | Modulation]
        if conditions is None:
            if positions is None:
                start = 0 if cache is None else cache.frames
                positions = torch.arange(start, start + T, device=x.device)
            placement, given = self.placement(x, cameras, positions), self._given(sigma, positions)
            clock = self.time_embed(sigma, cameras)
            mods, (shift, factor) = [clock] * self.config.num_layers, self._head(clock)
        else:
            assert conditions.given is not None, "conditions of another model"
            placement, given, (shift, factor) = conditions.placement, conditions.given, conditions.head.unbind(0)
            mods = [Modulation(*own.unbind(0)) for own in conditions.blocks.unbind(0)]
        known = given[:, :, None, None, None].to(x.dtype).expand(-1, -1, 1, H, W)
        h: Tensor = self.x_embedder["proj"](torch.cat([x, x * known, known], dim=2)).float()
        shared = dist.sequence() > 1  # then S is this process's part of every frame's tokens, until the last projection
        h = dist.own_tokens(h, 2) if shared else h
        seen = Seen(T, placement.cameras, None, mask, cache)
        stream = self._prompt(text, sigma, seen)
        for layer, block in enumerate(self._blocks()):
            prompt = Always(*text.layers[layer], text.valid) if stream is None else stream
            h, after = block(h, mods[layer], prompt, placement.rope, seen, layer)
            stream = after if isinstance(after, Prompt) else None
        out = self.proj_out(modulated_norm(h, shift, factor, self.config.eps)).float()
        out = dist.all_tokens(out, 2) if shared else out
        return rearrange(out, "b t (h w) (c p q) -> b t c (h p) (w q)", h=H // ph, w=W // pw, p=ph, q=pw)

    def _prompt(self, text: TextContext, sigma: Tensor, seen: Seen) -> Prompt | None:
        """The prompt's stream of a joint pass, at the highest noise level of the clip; None where it is decoupled."""
        if self.config.text_mode != "joint":
            return None
        if seen.mask is not None or seen.cache is not None or dist.sequence() > 1:
            raise WorldlineError(
                "text_mode 'joint' lets the prompt see every frame; expected 'decoupled' for teacher forcing, streaming and "
                "sequence parallel: set model.changes.text_mode, and train"
            )
        others, words = text.sources
        return Prompt(*self._stream(others[0], words, text.valid, sigma.amax(dim=1)), text.valid)

    @property
    def reanchors(self) -> bool:
        """A prompt's keys stand in the world frame of the first camera: with PRoPE a walk keeps it."""
        return self.config.camera == "none"

    def reanchor(self, cache: KVCache, world: Tensor) -> None:
        """Nothing of a cache without cameras is in a world frame. Raises WorldlineError with PRoPE."""
        if not self.reanchors:
            raise WorldlineError("this model's prompt is in the world frame of its walk, which cannot be moved")
