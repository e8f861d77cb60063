"""Who reads the prompts of a world, and its start images where the model is told of them: hashed words, or its backbone's
encoders behind embeddings that travel with the world."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from worldline.models.image_cache import CachedImageEncoder, ImageEncoder
from worldline.models.registry import BackboneConfig
from worldline.models.text import HashTextEncoder
from worldline.models.text_cache import CachedTextEncoder, TextEncoder
from worldline.models.text_readers import Reader, cleaner, open_image_reader, open_reader
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
        folder = _folder(text)
        try:
            made = open_reader(text.kind, folder, config, device)
        except WorldlineError as error:
            raise WorldlineError(
                f"a new prompt for this world needs its text encoder: {error}. Set {ENVIRONMENT} to its folder, or use the "
                "prompts of the world's starts, whose embeddings it has"
            ) from error
        _check(folder, "text", made.fingerprint, text.fingerprint)
        return made

    return CachedTextEncoder(make, Path(directory) / EMBEDDINGS, fingerprint=text.fingerprint, clean=cleaner(text.kind))


def world_image_encoder(
    directory: str | Path, text: WorldText | None, config: BackboneConfig, device: torch.device | str = "cpu"
) -> ImageEncoder | None:
    """The encoder of start images of the world in `directory`, None where its model is told nothing of them. Its weights are
    sought at the first picture that is not a start of the world. Raises WorldlineError then, as `world_text_encoder`."""
    if text is None or text.images is None:
        return None
    wanted = text.images

    def make() -> ImageEncoder:
        folder = _folder(text)
        try:
            made = open_image_reader(folder, config, device)
        except WorldlineError as error:
            raise WorldlineError(
                f"a new start image for this world needs its image encoder: {error}. Set {ENVIRONMENT} to its folder, or use "
                "the world's starts, whose embeddings it has"
            ) from error
        _check(folder, "image", made.fingerprint, wanted)
        return made

    return CachedImageEncoder(make, Path(directory) / EMBEDDINGS, fingerprint=wanted)


def _folder(text: WorldText) -> str:
    return os.environ.get(ENVIRONMENT) or text.path


def _check(folder: str, what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise WorldlineError(
            f"{folder} holds the {what} encoder {found}, this world was made with {wanted}; set {ENVIRONMENT} to the folder of "
            "that one"
        )


def write_images(directory: Path, encoder: ImageEncoder, images: Sequence[np.ndarray]) -> None:
    """Put the tokens of some start images into the world in `directory`."""
    CachedImageEncoder(lambda: encoder, directory / EMBEDDINGS, fingerprint=encoder.fingerprint).encode(images)


def write_embeddings(directory: Path, encoder: TextEncoder, prompts: list[str], kind: Reader = "umt5") -> None:
    """Put the embeddings of some prompts into the world in `directory`."""
    kept = CachedTextEncoder(
        lambda: encoder, directory / EMBEDDINGS, fingerprint=encoder.fingerprint, clean=cleaner(kind)
    )
    kept.encode(prompts)
