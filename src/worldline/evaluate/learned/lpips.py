"""LPIPS with AlexNet (Zhang et al. 2018, version 0.1), from local files: lower is nearer to the truth.

Features of five ReLU stages are scaled to unit length over channels, squared differences are weighted by channel (the
linear weights), averaged over the picture and added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.evaluate.learned import NEEDS, Clip, Measured, averaged, digest
from worldline.schema import ShapeError, WorldlineError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]: ImageNet's mean and deviation
# (layer of torchvision's `features`, stride, padding, whether the maps are halved before it)
STAGES = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
MARKS = (1, 4)  # seconds, read over the quarter second before
BATCH = 16


@dataclass(frozen=True)
class Lpips:
    """convolutions: (weight, bias) of the five stages; heads: [C] weights of each stage's channels."""

    convolutions: tuple[tuple[Tensor, Tensor], ...]
    heads: tuple[Tensor, ...]

    def features(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] in [-1, 1] -> maps after each ReLU."""
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        found = []
        for (weight, bias), (_, stride, padding, pooled) in zip(self.convolutions, STAGES, strict=True):
            if pooled:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x)
        return found

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] twice -> [N]. Raises ShapeError where they differ in shape or are smaller than 63 pixels."""
        if a.shape != b.shape or a.ndim != 4 or min(a.shape[1:3]) < 63:
            raise ShapeError(f"LPIPS of {a.shape} and {b.shape}; expected two [N, H, W, 3], H and W at least 63")
        found = [self._distance(a[i : i + BATCH], b[i : i + BATCH]) for i in range(0, len(a), BATCH)]
        return np.concatenate(found)

    def _distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        x, y = (torch.from_numpy(np.ascontiguousarray(v)).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (a, b))
        total = torch.zeros(len(a))
        for p, q, head in zip(self.features(x), self.features(y), self.heads, strict=True):
            p, q = (v / (v.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for v in (p, q))
            total += torch.einsum("nchw,c->nhw", (p - q).square(), head).mean(dim=(1, 2))
        return total.numpy()


def load(folder: Path) -> Lpips:
    """AlexNet and linear weights of a folder. Raises WorldlineError where either is missing or of another shape."""
    found = sorted(p for p in folder.glob("alexnet*") if p.suffix in (".pth", ".pt", ".safetensors"))
    heads = [p for p in (folder / "alex.pth", folder / "alex.safetensors") if p.is_file()]
    if not found or not heads:
        missing = "alexnet*.pth" if not found else "alex.pth"
        raise WorldlineError(f"{folder} has no {missing}; expected {NEEDS['lpips']}")
    backbone, linear = read_weights(found[0]), read_weights(heads[0])
    try:
        convolutions = tuple(
            (backbone[f"features.{i}.weight"].float(), backbone[f"features.{i}.bias"].float()) for i, *_ in STAGES
        )
        weights = tuple(linear[f"lin{i}.model.1.weight"].float().flatten() for i in range(len(STAGES)))
    except KeyError as error:
        raise WorldlineError(f"{folder} lacks the weights {error}; expected {NEEDS['lpips']}") from error
    widths = [len(bias) for _, bias in convolutions]
    if widths != [len(w) for w in weights]:
        raise WorldlineError(f"{folder}: AlexNet has {widths} channels, alex.pth {[len(w) for w in weights]}")
    return Lpips(convolutions, weights)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Tensors by name of a .pth (weights only, no code is run) or .safetensors."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    loaded: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def measure(clips: Sequence[Clip], folder: Path) -> Measured:
    """lpips_1s and lpips_4s of every row, mean over the walks (S7, S11) that are long enough."""
    network, found = load(folder), []
    for clip in clips:
        if clip.suite not in ("S7", "S11"):
            continue
        truth = clip.row("replay")
        marks = [m for m in MARKS if 16 * m < len(truth)]
        frames = np.concatenate([np.arange(16 * m - 3, 16 * m + 1) for m in marks]) if marks else np.zeros(0, int)
        if not len(frames):
            continue
        values = {}
        for row in ("model", "frozen", "other-actions"):
            apart = network(clip.row(row)[frames], truth[frames]).reshape(len(marks), 4).mean(axis=1)
            values[row] = {f"lpips_{m}s": float(v) for m, v in zip(marks, apart, strict=True)}
        found.append(values)
    if not found:
        return {"reason": "no walk (S7, S11) of a second or more in the preset"}
    return {**averaged(found), "weights": digest(folder)}
