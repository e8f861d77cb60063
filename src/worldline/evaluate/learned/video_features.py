"""Features of 16-frame windows by a TorchScript network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldline.evaluate.learned import Clip, Measured, digest, windows
from worldline.schema import WorldlineError

FRAMES, SIDE, BATCH = 16, 224, 4
Network = Callable[[Tensor], Tensor]
Distance = Callable[[np.ndarray, np.ndarray], float]


def load_script(path: Path, needs: str) -> torch.jit.ScriptModule:
    """A TorchScript file. Raises WorldlineError where it is none."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else "it cannot be read"
        raise WorldlineError(f"{path} is no TorchScript file ({line}); expected {needs}") from error


def prepared(clips: np.ndarray) -> Tensor:
    """uint8 [n, T, H, W, 3] -> [n, 3, T, 224, 224] in [-1, 1]: the shorter side to 224, bilinear, the middle cut out."""
    n, T, H, W, _ = clips.shape
    x = torch.from_numpy(np.ascontiguousarray(clips)).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    scale = SIDE / min(H, W)
    size = (max(SIDE, round(H * scale)), max(SIDE, round(W * scale)))
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=min(H, W) > SIDE)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    x = x[:, :, top : top + SIDE, left : left + SIDE]
    return x.reshape(n, T, 3, SIDE, SIDE).transpose(1, 2)


@torch.inference_mode()
def features_of(clips: Sequence[Clip], row: str, network: Network) -> np.ndarray:
    """[n, D] of all whole windows of a row, the given start left out. Raises WorldlineError where the network gives
    something else than one vector a window."""
    found = []
    for clip in clips:
        cut = windows(clip.row(row)[1:], FRAMES)
        for at in range(0, len(cut), BATCH):
            batch = cut[at : at + BATCH]
            vectors = network(prepared(batch))
            if vectors.ndim != 2 or len(vectors) != len(batch):
                raise WorldlineError(
                    f"the network gave {tuple(vectors.shape)} for {len(batch)} windows; expected [{len(batch)}, D]"
                )
            found.append(vectors.double().numpy())
    return np.concatenate(found) if found else np.zeros((0, 1))


def distances(
    clips: Sequence[Clip], path: Path, name: str, fewest: int, load: Callable[[], Network], distance: Distance
) -> Measured:
    """Figure `name`: the distance of the model's features, and of the floors', from the replay's. Skipped below `fewest` windows,
    before `load` reads the network of `path`."""
    count = sum((len(c.row("replay")) - 1) // FRAMES for c in clips)
    if count < fewest:
        return {"reason": f"{count} windows of {FRAMES} frames, {fewest} are needed; use a larger preset"}
    network = load()
    truth = features_of(clips, "replay", network)
    rows = {row: {name: round(distance(features_of(clips, row, network), truth), 4)}
            for row in ("model", "frozen", "other-actions")}  # fmt: skip
    return {**rows, "clips": len(clips), "windows": count, "weights": digest(path)}
