"""What the rest of the framework asks of a video diffusion transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from worldline.nn.kv_cache import KVCache
from worldline.schema import Cameras, TextEmbedding


@dataclass(frozen=True)
class TextContext:
    """Keys and values of the prompt for every layer, each [B, N, L_text, Dh]: made once per prompt."""

    layers: tuple[tuple[Tensor, Tensor], ...]


class Backbone(nn.Module, ABC):
    """Predicts velocity = eps - x0: `model(x, sigma, text, cameras=, positions=, mask=, cache=)` -> [B, T, C, H, W].

    x: [B, T, C, H, W]; sigma: [B, T], one noise level a latent frame. `mask` (a FrameMask) and `cache` (the
    clean past) are the two ways to say what a frame sees; a model without cameras ignores them.
    """

    config: Any

    @abstractmethod
    def text_context(self, text: TextEmbedding) -> TextContext:
        """The prompt, embedded once for all layers and steps."""

    @abstractmethod
    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame of this grid."""

    def conditions(self, levels: Sequence[float], like: Tensor, cameras: Cameras | None, start: int) -> list[Any]:
        """For every noise level what `model(..., conditions=)` takes in place of forming it again in every step; empty
        where this backbone has no such thing. like: the chunk [B, T, C, H, W]; start: its first latent's index."""
        return []

    @property
    @abstractmethod
    def reanchors(self) -> bool:
        """Whether `reanchor` leaves what the model will do unchanged; where not, a walk keeps its first world frame."""

    @abstractmethod
    def reanchor(self, cache: KVCache, world: Tensor) -> None:
        """Move a cache to another world frame: world [B, 4, 4] maps old to new world points."""
