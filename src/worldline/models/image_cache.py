"""Start images are encoded once: their tokens on disk, one safetensors file a picture, keyed by encoder and pixels; written
and checked as `text_cache` does it. While every picture hits, the encoder is never built."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldline.models.text_cache import digest, made_for, open_folder, tensor_bytes, write_whole

logger = logging.getLogger(__name__)

_FORMAT = "image-1"


class ImageEncoder(Protocol):
    """What every reader of start images is: B pictures uint8 [H, W, 3] -> tokens [B, N, W], and a name for its answers."""

    @property
    def fingerprint(self) -> str: ...

    def encode(self, images: Sequence[np.ndarray]) -> Tensor: ...


class CachedImageEncoder:
    """A reader of start images that answers from disk, and builds the real one at the first picture it has not seen. make:
    called at most once; fingerprint: the name of the encoder that it returns."""

    def __init__(self, make: Callable[[], ImageEncoder], directory: str | Path, *, fingerprint: str) -> None:
        self.directory, self.fingerprint = open_folder(directory), fingerprint
        self._make = make
        self._encoder: ImageEncoder | None = None
        self._lock = threading.Lock()

    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """images: B pictures uint8 [H, W, 3] -> tokens [B, N, W] in the encoder's type, to the byte what it gives. Where the
        folder cannot be written, a warning is logged and the tokens are returned all the same."""
        keys = [self._key(image) for image in images]
        read = {key: self._read(key) for key in dict.fromkeys(keys)}
        found = {key: tokens for key, tokens in read.items() if tokens is not None}
        if missing := [key for key in read if key not in found]:
            pictures = dict(zip(keys, images, strict=True))
            for key, tokens in zip(missing, self._encode([pictures[key] for key in missing]), strict=True):
                found[key] = tokens
                self._write(key, tokens)
        return torch.stack([found[key] for key in keys])

    def _key(self, image: np.ndarray) -> str:
        return digest(_FORMAT, self.fingerprint, f"{image.dtype} {image.shape}", np.ascontiguousarray(image).tobytes())

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"

    def _encode(self, images: list[np.ndarray]) -> Tensor:
        with self._lock:
            if self._encoder is None:
                self._encoder = made_for(self.fingerprint, self._make)
            return self._encoder.encode(images)

    def _write(self, key: str, tokens: Tensor) -> None:
        from safetensors.torch import save

        about = {"key": key, "sum": digest(tensor_bytes(tokens))}
        try:
            stored = {"image": tokens.contiguous()}
            write_whole(self._path(key), save(stored, metadata={"about": json.dumps(about, sort_keys=True)}))
        except OSError as error:
            logger.warning("could not keep the tokens of a start image in %s: %s", self.directory, error)

    def _read(self, key: str) -> Tensor | None:
        """The tokens [N, W] of an entry; None where there is none or it does not check."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._path(key)
        try:
            data = path.read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            about, tokens = json.loads(header["__metadata__"]["about"]), load(data)["image"]
            if about["key"] == key and about["sum"] == digest(tensor_bytes(tokens)):
                return tokens
            logger.warning("the cached image tokens %s do not check and are made again", path)
        except FileNotFoundError:
            pass
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            logger.warning("the cached image tokens %s are unusable and are made again: %s", path, error)
        return None
