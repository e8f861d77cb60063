"""A small deterministic text encoder that needs no download: hashed words with a position code.

Every word maps to a fixed unit-variance vector drawn from a generator seeded by the word's hash. It stands where a
large language encoder stands for the big backbones: same interface, same `TextEmbedding`, same fingerprint rule.
"""

from __future__ import annotations

import hashlib
import re

import torch

from worldline.schema import TextEmbedding

_WORD = re.compile(r"[a-z0-9]+")


class HashTextEncoder:
    """encode(prompts) -> TextEmbedding [B, length, dim]. The empty prompt embeds to one begin token."""

    def __init__(self, dim: int = 64, length: int = 24) -> None:
        self.dim, self.length = dim, length
        self.fingerprint = f"hash-v1-{dim}x{length}"
        self._words: dict[str, torch.Tensor] = {}
        angles = torch.arange(length)[:, None] / 100 ** torch.linspace(0, 1, dim // 2)
        self._places = 0.5 * torch.cat([angles.cos(), angles.sin()], dim=-1)  # [length, dim]

    def _word(self, word: str) -> torch.Tensor:
        if word not in self._words:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") >> 1
            self._words[word] = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        return self._words[word]

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """prompts: B strings. Words past `length` - 1 are cut, as every encoder of fixed context does."""
        tokens = torch.zeros(len(prompts), self.length, self.dim)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        for b, prompt in enumerate(prompts):
            words = ["<begin>", *_WORD.findall(prompt.lower())][: self.length]
            tokens[b, : len(words)] = torch.stack([self._word(word) for word in words]) + self._places[: len(words)]
            mask[b, : len(words)] = True
        return TextEmbedding(tokens, mask, self.fingerprint)
