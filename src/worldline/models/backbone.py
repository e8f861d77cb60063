"""What the rest of the framework asks of a video diffusion transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.nn.kv_cache import KVCache
from worldline.schema import Cameras, ShapeError, TextEmbedding


@dataclass(frozen=True)
class TextContext:
    """What a model made of prompts, once for all steps.

    layers: keys and values of every layer, each [B, N, L_text, Dh]; valid: bool [B, L_text], those that may be attended to,
    None where all may. sources: of a model whose prompt changes with what it attends to (joint attention) there are no such
    layers, but what it starts from: tokens [B, L, D] and which of them are valid [B, L], for every source.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    valid: Tensor | None = None
    sources: tuple[tuple[Tensor, Tensor], ...] = ()

    def each(self, change: Callable[[Tensor], Tensor]) -> TextContext:
        """All tensors changed, which share their first axis, the batch."""
        layers, sources = (tuple((change(a), change(b)) for a, b in pairs) for pairs in (self.layers, self.sources))
        return TextContext(layers, None if self.valid is None else change(self.valid), sources)

    @staticmethod
    def cat(contexts: Sequence[TextContext]) -> TextContext:
        """One batch of all; shorter prompts get tokens that are not attended to."""
        layers = tuple(
            (_cat([k for k, _ in own], -2), _cat([v for _, v in own], -2))
            for own in zip(*(c.layers for c in contexts), strict=True)
        )
        sources = tuple(
            (_cat([tokens for tokens, _ in own], -2), _cat([valid for _, valid in own], -1))
            for own in zip(*(c.sources for c in contexts), strict=True)
        )
        if len({c.length for c in contexts}) == 1 and all(c.valid is None for c in contexts):
            return TextContext(layers, None, sources)
        if sources:  # padded one by one
            return TextContext(layers, torch.cat([valid for _, valid in sources], dim=-1), sources)
        keys = [c.layers[0][0] for c in contexts]
        valid = [
            k.new_ones(len(k), k.shape[-2], dtype=torch.bool) if c.valid is None else c.valid
            for c, k in zip(contexts, keys, strict=True)
        ]
        return TextContext(layers, _cat(valid, -1), sources)

    @property
    def length(self) -> tuple[int, ...]:
        """Tokens of every source, or of the whole prompt."""
        return tuple(x.shape[-2] for x, _ in (self.sources or self.layers[:1]))


def _cat(parts: list[Tensor], axis: int) -> Tensor:
    """One batch; along `axis` (from the end) the shorter are padded with zeros."""
    longest = max(x.shape[axis] for x in parts)
    behind = [0, 0] * (-axis - 1)
    return torch.cat([F.pad(x, (*behind, 0, longest - x.shape[axis])) for x in parts])


# Parts that steer, by their keys: no pretrained model's own, absent from its checkpoints.
INJECTED = ("prope_o", "motion_embedder", "action_embedder", "ray_embedding", "camera_embedder", "norm3", "attn3")


class TransformerBlock(nn.Module):
    """The part of a backbone that repeats: what is sharded, compiled and computed again on its own. Takes (x, mod, text, rope,
    seen, layer), of which `seen` says what it attends to; gives x [B, T, S, D], or x and what became of the text."""


class Backbone(nn.Module, ABC):
    """Predicts velocity = eps - x0: `model(x, sigma, text, cameras=, positions=, mask=, cache=)` -> [B, T, C, H, W].

    x: [B, T, C, H, W]; sigma: [B, T], one noise level a latent frame. `mask` (a FrameMask) and `cache` (the
    clean past) are the two ways to say what a frame sees; a model without cameras ignores them.
    """

    config: Any
    blocks: Any  # its TransformerBlocks, in order

    @abstractmethod
    def text_context(self, text: TextEmbedding) -> TextContext:
        """The prompt, embedded once for all layers and steps."""

    @abstractmethod
    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame of this grid."""

    def whole_context(self, text: TextEmbedding) -> TextContext:
        """`text_context` of prompts that fill all their places: it need not look at values."""
        return self.text_context(text)

    def check(self, x: Tensor, cameras: Cameras | None, sigma: Tensor | None = None) -> None:
        """Raises ShapeError where a call's x [B, T, C, H, W], cameras and sigma do not belong together or to this model."""
        _, ph, pw = self.config.patch_size
        B, T, _, H, W = x.shape
        if sigma is not None and sigma.shape != (B, T):
            raise ShapeError(f"sigma {tuple(sigma.shape)}: expected one noise level per latent frame, {(B, T)}")
        if H % ph or W % pw:
            raise ShapeError(f"latent grid {H}x{W} does not divide into patches of {ph}x{pw}")
        if cameras is not None and cameras.w2c.shape[1] != T:
            raise ShapeError(f"{cameras.w2c.shape[1]} cameras for {T} latent frames; expected one a frame")

    def freeze(self, dtype: torch.dtype = torch.float32) -> Backbone:
        """Lay the weights out for inference in `dtype`, in place, where this backbone gains by it."""
        return self.eval().requires_grad_(False)

    @property
    def frozen(self) -> bool:
        """Whether `freeze` has laid the weights out so that they can no longer be trained, adapted, saved or moved."""
        return False

    def conditions(self, levels: Sequence[float], like: Tensor, cameras: Cameras | None, start: int) -> list[Any]:
        """For every noise level what `model(..., conditions=)` takes in place of forming it again in every step; empty
        where this backbone has no such thing. like: the chunk [B, T, C, H, W]; start: its first latent's index."""
        return []

    @property
    def turns(self) -> bool:
        """Whether a cached key can be moved in time by turning it (`rollout.positions`): it holds its position by rotations
        over the whole head, and nothing else does."""
        return False

    @property
    @abstractmethod
    def reanchors(self) -> bool:
        """Whether `reanchor` leaves what the model will do unchanged; where not, a walk keeps its first world frame."""

    @abstractmethod
    def reanchor(self, cache: KVCache, world: Tensor) -> None:
        """Move a cache to another world frame: world [B, 4, 4] maps old to new world points."""


class Around(Backbone):
    """A backbone that runs another one in its own way: all but `forward` is the other's."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def text_context(self, text: TextEmbedding) -> TextContext:
        """As the model's."""
        return self.model.text_context(text)

    def tokens_per_frame(self, height: int, width: int) -> int:
        """As the model's."""
        return self.model.tokens_per_frame(height, width)

    def conditions(self, levels: Sequence[float], like: Tensor, cameras: Cameras | None, start: int) -> list[Any]:
        """As the model's."""
        return self.model.conditions(levels, like, cameras, start)

    @property
    def turns(self) -> bool:
        """As the model's."""
        return self.model.turns

    @property
    def reanchors(self) -> bool:
        """As the model's."""
        return self.model.reanchors

    def reanchor(self, cache: KVCache, world: Tensor) -> None:
        """As the model's; the cache keeps its addresses."""
        self.model.reanchor(cache, world)
