"""CLIP (Radford et al. 2021) from a local folder: likeness of frames to the prompt, to the truth and to the frame before;
and the LAION aesthetic predictor on top of it.

None of these sees whether keys were followed; a frozen picture scores well. Read them beside the floors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.evaluate.learned import NEEDS, Clip, Measured, averaged, digest
from worldline.evaluate.learned.lpips import read_weights
from worldline.schema import WorldlineError

EVERY = 4  # frames between two that are read
BATCH = 16
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Encoder:
    """A CLIP model and its tokenizer of a folder, in fp32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        """Raises WorldlineError where transformers is missing or the folder is no CLIP model."""
        try:
            from transformers import AutoTokenizer, CLIPModel
        except ImportError as error:
            raise WorldlineError(f"CLIP needs transformers ({error}); pip install 'worldline[text]'") from error
        if not (folder / "config.json").is_file():
            raise WorldlineError(f"{folder} has no config.json; expected {NEEDS['clip']}")
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind != "clip":
            raise WorldlineError(f"{folder} holds a model of type {kind!r}; expected {NEEDS['clip']}")
        self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        settings = folder / "preprocessor_config.json"
        said = json.loads(settings.read_text()) if settings.is_file() else {}
        self.mean, self.deviation = said.get("image_mean", MEAN), said.get("image_std", DEVIATION)
        self.side = int(self.model.config.vision_config.image_size)

    def prepared(self, frames: np.ndarray) -> Tensor:
        """uint8 [N, H, W, 3] -> [N, 3, side, side]: the shorter side to `side`, bicubic, the middle cut out, normalised."""
        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
        scale = self.side / min(x.shape[-2:])
        size = tuple(max(self.side, round(s * scale)) for s in x.shape[-2:])
        x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        top, left = ((s - self.side) // 2 for s in size)
        x = x[:, :, top : top + self.side, left : left + self.side]
        mean, deviation = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.deviation))
        return (x - mean) / deviation

    @torch.inference_mode()
    def images(self, frames: np.ndarray) -> Tensor:
        """uint8 [N, H, W, 3] -> [N, D] of unit length."""
        found = []
        for at in range(0, len(frames), BATCH):
            pooled = self.model.vision_model(pixel_values=self.prepared(frames[at : at + BATCH])).pooler_output
            found.append(F.normalize(self.model.visual_projection(pooled), dim=-1))
        return torch.cat(found)

    @torch.inference_mode()
    def text(self, prompt: str) -> Tensor:
        """[D] of unit length."""
        longest = int(self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer([prompt], return_tensors="pt", truncation=True, max_length=longest)
        pooled = self.model.text_model(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)[0]


def measure(clips: Sequence[Clip], folder: Path) -> Measured:
    """Cosines, mean over every fourth frame: clip_text with the prompt, clip_truth with the same frame of the replay,
    clip_steady with the frame read before."""
    encoder, found = Encoder(folder), []
    for clip in clips:
        prompt, truth = encoder.text(clip.caption), encoder.images(clip.row("replay")[EVERY::EVERY])
        values = {}
        for row in ("model", "replay", "frozen", "other-actions"):
            own = truth if row == "replay" else encoder.images(clip.row(row)[EVERY::EVERY])
            values[row] = {
                "clip_text": float((own @ prompt).mean()),
                "clip_truth": float((own * truth).sum(dim=-1).mean()),
                "clip_steady": float((own[1:] * own[:-1]).sum(dim=-1).mean()) if len(own) > 1 else 1.0,
            }
        found.append(values)
    return {**averaged(found), "weights": digest(folder)}


def measure_aesthetic(clips: Sequence[Clip], folder: Path, path: Path) -> Measured:
    """aesthetic: the linear predictor's score, 1 to 10, mean over every fourth frame."""
    encoder, linear = Encoder(folder), read_weights(path)
    if set(linear) != {"weight", "bias"} or linear["weight"].shape != (1, encoder.model.config.projection_dim):
        shapes = {k: tuple(v.shape) for k, v in linear.items()}
        raise WorldlineError(
            f"{path} holds {shapes}; expected weight (1, {encoder.model.config.projection_dim}) and bias (1,), made for the "
            f"CLIP of {folder}"
        )
    weight, bias = linear["weight"].float()[0], linear["bias"].float()
    found = [
        {
            row: {"aesthetic": float((encoder.images(clip.row(row)[EVERY::EVERY]) @ weight + bias).mean())}
            for row in ("model", "replay", "frozen")
        }
        for clip in clips
    ]
    return {**averaged(found), "weights": digest(path)}
