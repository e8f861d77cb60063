"""Prompts are encoded once: embeddings on disk, one safetensors file a prompt, keyed by encoder and cleaned text.

A file is written beside its place and renamed into it, so a reader sees a whole entry or none, and several processes may
fill one folder: the last to finish wins with the same bytes. Each entry carries the checksum of its content; one that
does not check is made again. While every prompt hits, the encoder is never built.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from worldline.schema import TextEmbedding, WorldlineError

logger = logging.getLogger(__name__)

_FORMAT = "text-1"
_SAMPLE = 1024


class Fingerprinted(Protocol):
    """What a cache's entries are told apart by."""

    @property
    def fingerprint(self) -> str: ...


class TextEncoder(Protocol):
    """What every prompt encoder is: B strings -> TextEmbedding [B, L, D], and a name for what it would answer."""

    fingerprint: str

    def encode(self, prompts: list[str]) -> TextEmbedding: ...


def digest(*parts: str | bytes) -> str:
    """sha256 in hex of the parts, each with its length, so that no two lists of parts run together."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()


def check_prompts(prompts: list[str]) -> list[str]:
    """The prompts, where they are a list of at least one string (one string alone would be read letter by letter)."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise WorldlineError(f"prompts are {str(prompts)[:60]!r}; expected a list of at least one string")
    return list(prompts)


def writable(text: str) -> str:
    """The text with lone surrogates, which no file and no tokenizer takes, as question marks."""
    return text.encode("utf-8", "replace").decode()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The raw bytes of a tensor of any dtype, in order of its elements."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def sample_digest(named: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> str:
    """Names, shapes and the first, middle and last 1024 values of every tensor, as `dtype`.

    Stands for the hash of all bytes of a large model: 11 GB take a minute from a disk, this reads three pages a tensor.
    Any training, merge or quantisation moves values in every tensor, so two models that differ in use differ here; the
    same weights in another file layout or storage dtype do not. It is no defence against a forger.
    """
    parts: list[str | bytes] = []
    for name, tensor in sorted(named, key=lambda item: item[0]):
        flat, half = tensor.flatten(), tensor.numel() // 2
        parts += [name, str(tuple(tensor.shape))]
        parts += [tensor_bytes(flat[a : a + _SAMPLE].to(dtype)) for a in (0, half, max(0, flat.numel() - _SAMPLE))]
    return digest(*parts)


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, or the next run after a crash, finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}-{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def open_folder(directory: str | Path) -> Path:
    """The cache folder, made where it is absent. Raises WorldlineError where it cannot be."""
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorldlineError(f"cannot make the cache folder {directory}: {error}; choose another") from error
    return directory


E = TypeVar("E", bound=Fingerprinted)


def made_for(fingerprint: str, make: Callable[[], E]) -> E:
    """The encoder that a cache was opened for. Raises WorldlineError where it is another."""
    encoder = make()
    if encoder.fingerprint != fingerprint:
        raise WorldlineError(
            f"the encoder says {encoder.fingerprint}, its cache was opened for {fingerprint}; open it with the encoder's own "
            "fingerprint"
        )
    return encoder


class CachedTextEncoder:
    """A prompt encoder that answers from disk, and builds the real one at the first prompt it has not seen.

    make: returns the encoder; called at most once, at the first miss. fingerprint: the name of the encoder that `make`
    returns, needed before there is one. clean: what that encoder does to a prompt first; prompts that clean to the same
    text share an entry.
    """

    def __init__(
        self,
        make: Callable[[], TextEncoder],
        directory: str | Path,
        *,
        fingerprint: str,
        clean: Callable[[str], str] = str,
    ) -> None:
        if not fingerprint:
            raise WorldlineError("the cached encoder has an empty fingerprint; expected the fingerprint of its encoder")
        self.directory, self.fingerprint = open_folder(directory), fingerprint
        self._make, self._clean = make, clean
        self._encoder: TextEncoder | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, encoder: TextEncoder, directory: str | Path) -> CachedTextEncoder:
        """The cache of an encoder at hand (one that itself loads late, as `UMT5Encoder` does, stays unloaded)."""
        clean = getattr(encoder, "clean", str)
        return cls(lambda: encoder, directory, fingerprint=encoder.fingerprint, clean=clean)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """prompts: B strings -> TextEmbedding [B, L, D] fp32, to the byte what the encoder gives; masked tokens are zeros.

        Prompts without an entry are encoded in one call and kept. Where the folder cannot be written, a warning is
        logged and the embedding is returned all the same.
        """
        prompts = check_prompts(prompts)
        cleaned = [self._clean(prompt) for prompt in prompts]
        read = {text: self._read(text) for text in dict.fromkeys(cleaned)}
        found = {text: entry for text, entry in read.items() if entry is not None}
        missing = [text for text in read if text not in found]
        if missing:
            # the encoder cleans by itself, and cleaning twice may say something else ("&amp;amp;")
            raw = dict(zip(cleaned, prompts, strict=True))
            made = self._encode([raw[text] for text in missing])
            for i, text in enumerate(missing):
                mask = made.mask[i].cpu()
                seen = made.tokens[i].detach().cpu().float()[mask]
                if not torch.isfinite(seen).all():
                    raise WorldlineError(f"the encoder gave non-finite values for {text[:60]!r}; nothing of it is kept")
                found[text] = (seen, mask)
                self._write(text, *found[text])
        entries = [found[text] for text in cleaned]
        masks = torch.stack([mask for _, mask in entries])
        tokens = torch.zeros(*masks.shape, entries[0][0].shape[-1])
        for row, (seen, mask) in zip(tokens, entries, strict=True):
            row[mask] = seen
        return TextEmbedding(tokens, masks, self.fingerprint)

    def path(self, prompt: str) -> Path:
        """Where the entry of a prompt lies."""
        return self._path(self._clean(prompt))

    def _path(self, text: str) -> Path:
        key = digest(_FORMAT, self.fingerprint, text)
        return self.directory / key[:2] / f"{key}.safetensors"

    def _encode(self, prompts: list[str]) -> TextEmbedding:
        with self._lock:
            if self._encoder is None:
                self._encoder = made_for(self.fingerprint, self._make)
            return self._encoder.encode(prompts)

    def _write(self, text: str, seen: Tensor, mask: Tensor) -> None:
        """Only what the mask shows is kept, and in half the bytes where that loses nothing (an encoder run in bf16)."""
        from safetensors.torch import save

        small = seen.bfloat16()
        stored = {"tokens": small if torch.equal(small.float(), seen) else seen, "mask": mask}
        about = {
            "prompt": text,
            "fingerprint": self.fingerprint,
            "sum": digest(*(tensor_bytes(stored[name]) for name in sorted(stored))),
        }
        try:
            # one field: safetensors writes several in an order of chance, and an entry's bytes should be its content's alone
            write_whole(self._path(text), save(stored, metadata={"about": json.dumps(about, sort_keys=True)}))
        except OSError as error:
            logger.warning("could not keep the embedding of %r in %s: %s", text[:60], self.directory, error)

    def _read(self, text: str) -> tuple[Tensor, Tensor] | None:
        """The n shown tokens [n, D] fp32 and the mask [L] of an entry; None where there is none or it does not check."""
        path = self._path(text)
        try:
            return _parse(path.read_bytes(), text, self.fingerprint)
        except FileNotFoundError:
            return None
        except (OSError, WorldlineError) as error:
            logger.warning("the cached embedding %s is unusable and is made again: %s", path, error)
            return None


def _parse(data: bytes, text: str, fingerprint: str) -> tuple[Tensor, Tensor]:
    """An entry's bytes -> shown tokens [n, D] fp32, mask [L]. Raises WorldlineError where anything in it does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["about"])
        stored = load(data)
        checks = digest(*(tensor_bytes(stored[name]) for name in sorted(stored))) == about["sum"]
        named = (about["prompt"], about["fingerprint"]) == (text, fingerprint)
        seen, mask = stored["tokens"].float(), stored["mask"].bool()
        fits = seen.ndim == 2 and mask.ndim == 1 and len(seen) == int(mask.sum())
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise WorldlineError(f"damaged: {error}") from error
    if not named:
        raise WorldlineError("it is of another prompt or encoder")
    if not checks or not fits:
        raise WorldlineError("its checksum or shape is wrong")
    return seen, mask
