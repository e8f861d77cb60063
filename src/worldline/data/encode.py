"""Encode clips once: latents and text embeddings in safetensors shards with a manifest, resumable by shard."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from worldline.data.dataset import ClipDataset
from worldline.schema import TextEmbedding, TimeGrid, WorldlineError


class Codec(Protocol):
    """What encoding asks of a codec."""

    @property
    def grid(self) -> TimeGrid: ...

    def encode(self, video: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...


class TextEncoder(Protocol):
    """What encoding asks of a text encoder."""

    fingerprint: str

    def encode(self, prompts: list[str]) -> TextEmbedding: ...


def to_video(frames: Any) -> Tensor:
    """uint8 [..., F, H, W, 3] -> float [..., F, 3, H, W] in [-1, 1]."""
    return torch.as_tensor(frames).movedim(-1, -3).float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """float [..., F, 3, H, W] in [-1, 1] -> uint8 [..., F, H, W, 3]."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def fingerprint(codec: Codec, text: TextEncoder) -> str:
    """12 hex digits of the codec's weights and the text encoder's name."""
    digest = hashlib.sha256(text.fingerprint.encode())
    for key, value in sorted(codec.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def encode_dataset(
    dataset: ClipDataset,
    codec: Codec,
    text: TextEncoder,
    out: str | Path,
    *,
    shard_clips: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write shards of latents [N, T, C, H, W] fp32, c2w [N, T, 4, 4] f64, K [N, T, 4] f64, text and mask under `out`.

    The codec's mode is taken (no sampling), so encoding is deterministic. A shard that exists is kept; a folder that was
    encoded by another codec or from other clips is refused.
    """
    from safetensors.torch import save_file

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    mark = {"encoders": fingerprint(codec, text), "source": dataset.info["fingerprint"], "clips": len(dataset)}
    if (out / "encoding.json").exists() and (there := json.loads((out / "encoding.json").read_text())) != mark:
        raise WorldlineError(f"{out} was encoded as {there}, not {mark}; choose another folder or delete this one")
    (out / "encoding.json").write_text(json.dumps(mark))
    count = -(-len(dataset) // shard_clips)
    for s in range(count):
        path = out / f"shard-{s:05d}.safetensors"
        if not path.exists():
            clips = [dataset[i] for i in range(s * shard_clips, min((s + 1) * shard_clips, len(dataset)))]
            paths = [c.cameras.of_latents(codec.grid) for c in clips]
            embedded = text.encode([c.caption for c in clips])
            video = [torch.from_numpy(c.frames) for c in clips]
            latents = torch.cat(
                [codec.encode(to_video(torch.stack(video[i : i + 8]))).float() for i in range(0, len(video), 8)]
            )
            if not torch.isfinite(latents).all():
                raise WorldlineError(f"the codec gave non-finite latents for clips {clips[0].id} .. {clips[-1].id}")
            arrays = {
                "latents": latents,
                "c2w": torch.stack([torch.from_numpy(p.c2w) for p in paths]),
                "K": torch.stack([torch.from_numpy(p.K) for p in paths]),
                "text": embedded.tokens,
                "mask": embedded.mask,
            }
            save_file(arrays, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
        if progress is not None:
            progress(s + 1, count)
    rows = [{"id": r["id"], "split": r["split"], "caption": r["caption"]} for r in dataset.rows]
    info = {
        **mark,
        "rows": rows,
        "move_scale": dataset.move_scale,
        "text": text.fingerprint,
        "shard_clips": shard_clips,
    }
    (out / "latents.json.tmp").write_text(json.dumps(info))
    os.replace(out / "latents.json.tmp", out / "latents.json")
    return out
