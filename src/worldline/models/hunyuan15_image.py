"""HunyuanVideo-1.5's reader of the start image: SigLIP, from files on this machine in diffusers' layout, through transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.models.text_cache import digest, sample_digest
from worldline.schema import ShapeError, WorldlineError

IMAGE_PARTS = ("image_encoder", "feature_extractor")


class HunyuanImageEncoder:
    """encode(images) -> tokens [B, N, W] in `dtype`. Making one reads nothing; weights load at the first image.

    folder: a diffusers HunyuanVideo-1.5 folder with image_encoder/ and feature_extractor/ (image to video). size: (N, W) that
    its tokens must have; None takes any. offload_after_use: let go of the weights after every call.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        offload_after_use: bool = False,
    ) -> None:
        self.folder, self.size, self.dtype = Path(folder), size, dtype
        self.device, self.offload_after_use = torch.device(device), offload_after_use
        if not has_parts(self.folder):
            raise WorldlineError(f"{folder} has no {' and '.join(IMAGE_PARTS)}; expected an image-to-video folder")
        self._model: Any = None
        self._lock = threading.Lock()

    @cached_property
    def fingerprint(self) -> str:
        """Names what this encoder answers: configs whole, weights by a few pages a tensor, dtype."""
        files, named = contents(self.folder, IMAGE_PARTS)
        whole = digest("v1", *files, sample_digest(named, self.dtype))
        return f"siglip-v1-{whole[:16]}-{str(self.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """images: B pictures uint8 [H, W, 3] -> tokens [B, N, W] on the CPU, each picture read alone: the same in any company
        and under any autocast. Raises ShapeError on other images, or where the tokens do not have `size`."""
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ShapeError(f"start image {image.dtype} {image.shape}: expected uint8 [H, W, 3]")
        with self._lock, torch.autocast(self.device.type, enabled=False):
            try:
                found = torch.stack([self._one(image) for image in images])
            finally:
                if self.offload_after_use:
                    self._model = None
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
        if self.size is not None and tuple(found.shape[1:]) != self.size:
            raise ShapeError(
                f"{self.folder} gives {tuple(found.shape[1:])} image tokens; this model expects {self.size}: another folder, or "
                "model.changes"
            )
        if not torch.isfinite(found).all():
            raise WorldlineError(f"the image encoder of {self.folder} gave non-finite values; check its weights")
        return found

    def _one(self, image: np.ndarray) -> Tensor:
        if self._model is None:
            model = transformers_class("SiglipVisionModel").from_pretrained(
                self.folder / "image_encoder", local_files_only=True, dtype=self.dtype
            )
            self._model = model.eval().requires_grad_(False).to(self.device)
        pixels = self._processor(images=image, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
        found: Tensor = self._model(pixel_values=pixels).last_hidden_state[0].to("cpu", self.dtype)
        return found

    @cached_property
    def _processor(self) -> Any:
        return transformers_class("AutoImageProcessor").from_pretrained(
            self.folder / "feature_extractor", local_files_only=True
        )


def has_parts(folder: Path) -> bool:
    """Whether a folder has what reads start images."""
    return all((folder / part).is_dir() for part in IMAGE_PARTS)


def contents(folder: Path, parts: Iterable[str]) -> tuple[list[str | bytes], list[tuple[str, Tensor]]]:
    """Of the parts of a diffusers folder: names and bytes of configs and tokenizers, names and tensors of weights."""
    from safetensors import safe_open

    files: list[str | bytes] = []
    named: list[tuple[str, Tensor]] = []
    for part in parts:
        for file in sorted((folder / part).iterdir()):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as handle:
                    named += [(f"{part}.{key}", handle.get_tensor(key)) for key in handle.keys()]  # noqa: SIM118
            elif file.suffix in (".json", ".txt", ".jinja"):
                files += [f"{part}/{file.name}", file.read_bytes()]
    return files, named


def transformers_class(name: str) -> Any:
    """A class of transformers. Raises WorldlineError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise WorldlineError("prompts for HunyuanVideo need transformers; install worldline[text]") from error
    return getattr(transformers, name)
