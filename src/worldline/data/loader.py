"""Latent batches by counter: batch number n of a seed is the same on every run, machine and restart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from worldline.data.encode import FORMAT
from worldline.data.pose_noise import PoseNoise
from worldline.data.reserved import refuse_reserved
from worldline.functional.camera import cameras_of
from worldline.schema import LatentBatch, TextEmbedding, WorldlineError


def gauge(c2w: Tensor, move_scale: float) -> Tensor:
    """c2w [B, T, 4, 4] f64 -> w2c fp32 in the gauge of the first frame, translations scaled by the dataset's constant."""
    relative = torch.linalg.inv(c2w[:, :1]) @ c2w
    relative[..., :3, 3] *= move_scale
    return torch.linalg.inv(relative).float()


class Prompts:
    """Embeddings of distinct prompts, held as they are stored: the shown tokens alone."""

    def __init__(self, stored: dict[str, Tensor], fingerprint: str) -> None:
        self.tokens, self.mask, self.fingerprint = stored["tokens"], stored["mask"], fingerprint
        self._ends = self.mask.sum(1).cumsum(0).tolist()

    def select(self, rows: list[int]) -> TextEmbedding:
        """Prompts of these rows, fp32, zeros where the mask hides."""
        mask = self.mask[rows]
        starts = [0, *self._ends]
        shown = torch.cat([self.tokens[starts[r] : self._ends[r]] for r in rows])
        tokens = torch.zeros(*mask.shape, self.tokens.shape[-1])
        tokens[mask] = shown.float()
        return TextEmbedding(tokens, mask, self.fingerprint)


class LatentDataset:
    """Encoded clips of one split, held in memory (68 KiB a nano clip)."""

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        latents: int | None = None,
        limit: int | None = None,
        pose_noise: PoseNoise | None = None,
    ) -> None:
        """latents: use the first so many latent frames of every clip (default: all). limit: use the first so many clips.
        pose_noise: cameras as an estimator would have found them."""
        from safetensors.torch import load_file

        root = Path(root)
        if not (root / "latents.json").exists():
            raise WorldlineError(f"{root} is no finished encoding (no latents.json); run the encode stage again")
        info = json.loads((root / "latents.json").read_text())
        if info.get("format") != FORMAT:
            raise WorldlineError(f"{root} was encoded in another format than {FORMAT}; run the encode stage again")
        keep = [i for i, r in enumerate(info["rows"]) if r["split"] == split][:limit]
        if not keep:
            raise WorldlineError(
                f"split {split!r} of {root} is empty; it has {sorted({r['split'] for r in info['rows']})}"
            )
        if split == "train":
            maps = (info["rows"][i].get("map_seed") for i in keep)
            refuse_reserved((m for m in maps if m is not None), f"the training split of {root}")
        shards = [load_file(p) for p in sorted(root.glob("shard-*.safetensors"))]
        whole = {k: torch.cat([s[k] for s in shards])[keep] for k in shards[0]}
        T = whole["latents"].shape[1]
        if latents is not None and not 1 <= latents <= T:
            raise WorldlineError(f"{latents} latents asked of clips of {T}; expected 1 to {T}")
        self.latents = whole["latents"][:, :latents]
        self.ids = tuple(info["rows"][i]["id"] for i in keep)
        c2w = whole["c2w"][:, :latents].double()
        if pose_noise is not None:
            c2w = pose_noise.apply(c2w, self.ids)
        self.w2c = gauge(c2w, float(info["move_scale"]))
        self.K = whole["K"][:, :latents].float()
        self.prompts, self.fingerprint = Prompts(load_file(root / "text.safetensors"), info["text"]), info["text"]
        self.prompt = whole["prompt"].tolist()
        self.images = whole.get(
            "image"
        )  # [N, n, W], tokens of the clips' first frames, where the model is told of them

    def __len__(self) -> int:
        return len(self.latents)

    def select(self, index: list[int]) -> LatentBatch:
        """The clips of these indices."""
        text = self.prompts.select([self.prompt[i] for i in index])
        text = text if self.images is None else text.seeing(self.images[index])
        return LatentBatch(
            self.latents[index], text, cameras_of(self.w2c[index], self.K[index]), tuple(self.ids[i] for i in index)
        )

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> LatentBatch:
        """Batch `step`: a stateless walk through a fresh permutation every epoch."""
        index = []
        for cursor in range(step * batch_size, (step + 1) * batch_size):
            epoch, at = divmod(cursor, len(self))
            index.append(int(_permutation(seed, epoch, len(self))[at]))
        return self.select(index).to(device)


_cache: dict[tuple[int, int, int], Tensor] = {}


def _permutation(seed: int, epoch: int, n: int) -> Tensor:
    key = (seed, epoch, n)
    if key not in _cache:
        if len(_cache) > 8:
            _cache.clear()
        digest = hashlib.sha256(f"epoch {seed} {epoch}".encode()).digest()
        _cache[key] = torch.randperm(n, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))
    return _cache[key]
