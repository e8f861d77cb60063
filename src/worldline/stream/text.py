"""Who reads the prompts of a world: hashed words, or its backbone's encoder behind embeddings that travel with the world."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from worldline.models.registry import BackboneConfig
from worldline.models.text import HashTextEncoder
from worldline.models.text_cache import CachedTextEncoder, TextEncoder
from worldline.models.text_readers import Reader, cleaner, open_reader
from worldline.schema import WorldlineError
from worldline.stream.world import WorldText

ENVIRONMENT = "WORLDLINE_TEXT"
"""Names the folder of the text encoder on this machine, where it is not the one that a world was made with."""
EMBEDDINGS = "text"
"""Folder of a world with the embeddings of its starts, so that those play without the encoder."""


def world_text_encoder(
    directory: str | Path, text: WorldText | None, config: BackboneConfig, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The prompt encoder of the world in `directory`; config: its model's.

    The weights of a large encoder are sought at the first prompt that has no embedding yet. Raises WorldlineError then,
    where they are missing or are not those that the world was made with.
    """
    if text is None:
        return HashTextEncoder(config.text_dim, config.text_len)

    def make() -> TextEncoder:
        folder = os.environ.get(ENVIRONMENT) or text.path
        try:
            made = open_reader(text.kind, folder, config, device)
        except WorldlineError as error:
            raise WorldlineError(
                f"a new prompt for this world needs its text encoder: {error}. Set {ENVIRONMENT} to its folder, or use the "
                "prompts of the world's starts, whose embeddings it has"
            ) from error
        if made.fingerprint != text.fingerprint:
            raise WorldlineError(
                f"{folder} holds the text encoder {made.fingerprint}, this world was made with {text.fingerprint}; set "
                f"{ENVIRONMENT} to the folder of that one"
            )
        return made

    return CachedTextEncoder(make, Path(directory) / EMBEDDINGS, fingerprint=text.fingerprint, clean=cleaner(text.kind))


def write_embeddings(directory: Path, encoder: TextEncoder, prompts: list[str], kind: Reader = "umt5") -> None:
    """Put the embeddings of some prompts into the world in `directory`."""
    kept = CachedTextEncoder(
        lambda: encoder, directory / EMBEDDINGS, fingerprint=encoder.fingerprint, clean=cleaner(kind)
    )
    kept.encode(prompts)
