"""HunyuanVideo-1.5's three readers: Qwen2.5-VL of the prompt, byT5 (Glyph) of its quoted words, SigLIP of the start image; from
files on this machine, in diffusers' layout, through transformers.

One embedding holds all three in a row (`HunyuanConfig.text_lens`), the narrower ones padded with zeros to Qwen's width. Every
prompt is read alone and without padding: Qwen is causal and byT5 masks it, so the numbers are those of the padded batch.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.models.hunyuan15_image import IMAGE_PARTS, HunyuanImageEncoder, contents, has_parts, transformers_class
from worldline.models.text_cache import check_prompts, digest, sample_digest, writable
from worldline.schema import ShapeError, TextEmbedding, WorldlineError

# What Qwen is told first, spaces included: its answers depend on them.
SYSTEM = (" " * 8).join(
    (
        "You are a helpful assistant. Describe the video by detailing the following aspects: ",
        "1. The main content and theme of the video. ",
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects. ",
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects. ",
        "4. background environment, light, style and atmosphere. ",
        "5. camera angles, movements, and transitions used in the video.",
    )
)
TEMPLATE_TOKENS = 108  # of the system message and the chat's marks, before the prompt's first token
LAYERS_LEFT_OUT = 2  # the hidden states taken are those before Qwen's last two layers
PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
_QUOTED = re.compile(r'"(.*?)"|\u201c(.*?)\u201d')


def quoted_words(prompt: str) -> str | None:
    """What byT5 reads of a prompt: its quoted texts, each once, as `Text "a". Text "b". `; None where nothing is quoted."""
    found = [straight or curly for straight, curly in _QUOTED.findall(prompt)]
    texts = list(dict.fromkeys(found)) if len(found) > 1 else found
    return ". ".join(f'Text "{text}"' for text in texts) + ". " if texts else None


class HunyuanTextEncoder:
    """encode(prompts, images) -> TextEmbedding [B, L, D] fp32. Making one reads a few pages; weights load at the first prompt.

    folder: a diffusers HunyuanVideo-1.5 folder with text_encoder/, tokenizer/, text_encoder_2/ and tokenizer_2/; where it
    also has image_encoder/ and feature_extractor/ (image to video), start images can be read. lens: places of the three
    sources. template: tokens before the prompt's own (108 of the published tokenizer). offload_after_use: let go of the
    weights after every call.
    """

    clean = staticmethod(writable)

    def __init__(
        self,
        folder: str | Path,
        *,
        lens: tuple[int, int, int] = (1000, 256, 729),
        template: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        offload_after_use: bool = False,
    ) -> None:
        self.folder, self.lens = Path(folder), lens
        self.template = TEMPLATE_TOKENS if template is None else template
        self.dtype, self.device, self.offload_after_use = dtype, torch.device(device), offload_after_use
        if absent := [part for part in PARTS if not (self.folder / part).is_dir()]:
            raise WorldlineError(
                f"{folder} has no {', '.join(absent)}; expected a local diffusers folder of HunyuanVideo-1.5, as nothing is "
                "downloaded"
            )
        self.sees = has_parts(self.folder)
        self.fingerprint = self._name()
        self._models: dict[str, Any] = {}
        self._lock = threading.Lock()

    def _name(self) -> str:
        """Names what this encoder answers: configs and tokenizers whole, weights by a few pages a tensor, lengths, dtype."""
        files, named = contents(self.folder, (*PARTS, *(IMAGE_PARTS if self.sees else ())))
        whole = digest("v1", json.dumps([self.lens, self.template]), *files, sample_digest(named, self.dtype))
        return f"hunyuan15-v1-{whole[:16]}-{'x'.join(map(str, self.lens))}-{str(self.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def encode(self, prompts: list[str], images: Sequence[np.ndarray] | None = None) -> TextEmbedding:
        """prompts: B strings; images: B start images uint8 [H, W, 3], or None (text to video). Tokens [B, L, D] on the CPU with
        zeros where the mask [B, L] is False.

        Raises WorldlineError where images are given and the folder has no image encoder, ShapeError on other images.
        """
        prompts = check_prompts(prompts)
        if images is not None and not self.sees:
            raise WorldlineError(f"{self.folder} has no {' and '.join(IMAGE_PARTS)}; expected an image-to-video folder")
        if images is not None and len(images) != len(prompts):
            raise ShapeError(f"{len(images)} images for {len(prompts)} prompts; expected one each")
        with self._lock:
            try:
                seen = None if images is None else self._reader.encode(images)
                rows = [
                    self._row(prompt, None if seen is None else seen[i].float()) for i, prompt in enumerate(prompts)
                ]
            finally:
                if self.offload_after_use:
                    self._models = {}
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
        tokens, masks = zip(*rows, strict=True)
        return TextEmbedding(torch.stack(tokens), torch.stack(masks), self.fingerprint)

    def _row(self, prompt: str, image: Tensor | None) -> tuple[Tensor, Tensor]:
        words = self._words(self.clean(prompt))
        quoted = quoted_words(self.clean(prompt))
        sources = (
            words,
            None if quoted is None else self._quoted(quoted),
            image,
        )
        tokens, mask = torch.zeros(sum(self.lens), words.shape[1]), torch.zeros(sum(self.lens), dtype=torch.bool)
        start = 0
        for found, length in zip(sources, self.lens, strict=True):
            if found is not None and length:
                if not torch.isfinite(found).all():
                    raise WorldlineError(
                        f"a text encoder gave non-finite values for {prompt[:60]!r}; check its weights"
                    )
                n = min(length, len(found))
                tokens[start : start + n, : found.shape[1]], mask[start : start + n] = found[:n], True
            start += length
        return tokens, mask

    def _words(self, prompt: str) -> Tensor:
        """Qwen's hidden states of the prompt [L, D], the template's cut off."""
        chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt or " "}]
        ids = self._qwen_tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            truncation=True, max_length=self.template + self.lens[0],
        )["input_ids"]  # fmt: skip
        states = self._model("text_encoder")(input_ids=ids.to(self.device), output_hidden_states=True).hidden_states
        found: Tensor = states[-(LAYERS_LEFT_OUT + 1)][0, self.template :].float().cpu()
        return found

    def _quoted(self, words: str) -> Tensor:
        ids = self._byt5_tokenizer(
            words, max_length=self.lens[1], truncation=True, add_special_tokens=True, return_tensors="pt"
        )
        found: Tensor = self._model("text_encoder_2")(input_ids=ids["input_ids"].to(self.device))[0][0].float().cpu()
        return found

    @cached_property
    def _qwen_tokenizer(self) -> Any:
        return transformers_class("AutoTokenizer").from_pretrained(self.folder / "tokenizer", local_files_only=True)

    @cached_property
    def _byt5_tokenizer(self) -> Any:
        return transformers_class("AutoTokenizer").from_pretrained(self.folder / "tokenizer_2", local_files_only=True)

    @cached_property
    def _reader(self) -> HunyuanImageEncoder:
        return HunyuanImageEncoder(
            self.folder, dtype=self.dtype, device=self.device, offload_after_use=self.offload_after_use
        )

    def _model(self, part: str) -> Any:
        if part not in self._models:
            name = {"text_encoder": "Qwen2_5_VLTextModel", "text_encoder_2": "T5EncoderModel"}[part]
            model = transformers_class(name).from_pretrained(
                self.folder / part, local_files_only=True, dtype=self.dtype
            )
            self._models[part] = model.eval().requires_grad_(False).to(self.device)
        return self._models[part]
