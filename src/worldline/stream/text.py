"""Who reads the prompts of a world: hashed words, or Wan's encoder behind embeddings that travel with the world."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from worldline.models.text import HashTextEncoder
from worldline.models.text_cache import CachedTextEncoder, TextEncoder
from worldline.models.umt5 import TextWeightsError, UMT5Encoder, clean_prompt
from worldline.schema import WorldlineError
from worldline.stream.world import WorldText

ENVIRONMENT = "WORLDLINE_TEXT"
"""Names the folder of Wan's text encoder on this machine, where it is not the one that a world was made with."""
EMBEDDINGS = "text"
"""Folder of a world with the embeddings of its starts, so that those play without the encoder."""


def world_text_encoder(
    directory: str | Path, text: WorldText | None, dim: int, length: int, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The prompt encoder of the world in `directory`; dim, length: what its model takes.

    The weights of a large encoder are sought at the first prompt that has no embedding yet. Raises WorldlineError then,
    where they are missing or are not those that the world was made with.
    """
    if text is None:
        return HashTextEncoder(dim, length)

    def make() -> TextEncoder:
        folder = os.environ.get(ENVIRONMENT) or text.path
        try:
            made = UMT5Encoder(folder, length=length, device=device, offload_after_use=True)
        except TextWeightsError as error:
            raise WorldlineError(
                f"a new prompt for this world needs Wan's text encoder: {error}. Set {ENVIRONMENT} to its folder, or use the "
                "prompts of the world's starts, whose embeddings it has"
            ) from error
        if made.fingerprint != text.fingerprint:
            raise WorldlineError(
                f"{folder} holds the text encoder {made.fingerprint}, this world was made with {text.fingerprint}; set "
                f"{ENVIRONMENT} to the folder of that one"
            )
        return made

    return CachedTextEncoder(make, Path(directory) / EMBEDDINGS, fingerprint=text.fingerprint, clean=clean_prompt)


def write_embeddings(directory: Path, encoder: TextEncoder, prompts: list[str]) -> None:
    """Put the embeddings of some prompts into the world in `directory`."""
    kept = CachedTextEncoder(
        lambda: encoder, directory / EMBEDDINGS, fingerprint=encoder.fingerprint, clean=clean_prompt
    )
    kept.encode(prompts)
