"""Encode clips once: latents in safetensors shards with a manifest, resumable by shard; every distinct prompt once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldline.data.dataset import Clip, ClipDataset
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


class ImageEncoder(Protocol):
    """What encoding asks of an encoder of start images: B pictures uint8 [H, W, 3] -> tokens [B, n, W]."""

    @property
    def fingerprint(self) -> str: ...

    def encode(self, images: Sequence[np.ndarray]) -> Tensor: ...


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


FORMAT = 2
"""Of an encoded folder; 1 had the prompt of every clip beside its latents."""
PROMPTS_AT_ONCE = 64
PIXELS = 8 * 45 * 64 * 96
"""Encoded together: eight nano clips, or one of 480 x 832."""


@torch.no_grad()
def encode_prompts(prompts: list[str], text: TextEncoder) -> dict[str, Tensor]:
    """Embeddings of P prompts as they are kept: `tokens` [sum of n, D], the shown tokens one prompt after another, in bf16
    where that loses nothing (UMT5 computes in it); `mask` [P, L] says how many and where."""
    tokens, masks = [], []
    for i in range(0, len(prompts), PROMPTS_AT_ONCE):
        made = text.encode(prompts[i : i + PROMPTS_AT_ONCE])
        shown, mask = made.tokens.detach().cpu().float(), made.mask.cpu()
        flat = shown[mask]
        if not torch.isfinite(flat).all():
            raise WorldlineError(
                f"the text encoder gave non-finite values for some of {prompts[i : i + PROMPTS_AT_ONCE][:4]}"
            )
        small = flat.bfloat16()
        tokens.append(small if torch.equal(small.float(), flat) else flat)
        masks.append(mask)
    exact = all(t.dtype == torch.bfloat16 for t in tokens)
    return {"tokens": torch.cat([t if exact else t.float() for t in tokens]), "mask": torch.cat(masks)}


def _encoded(
    clips: list[Clip], codec: Codec, prompts: dict[str, int], device: torch.device, images: ImageEncoder | None
) -> dict[str, Tensor]:
    """Rows of a shard, on the CPU."""
    latents = codec.encode(to_video(np.stack([c.frames for c in clips])).to(device)).float().cpu()
    if not torch.isfinite(latents).all():
        raise WorldlineError(f"the codec gave non-finite latents for clips {clips[0].id} .. {clips[-1].id}")
    paths = [c.cameras.of_latents(codec.grid) for c in clips]
    seen = {} if images is None else {"image": images.encode([np.asarray(c.frames[0]) for c in clips])}
    return {
        **seen,
        "latents": latents,
        "c2w": torch.stack([torch.from_numpy(p.c2w) for p in paths]),
        "K": torch.stack([torch.from_numpy(p.K) for p in paths]),
        "prompt": torch.tensor([prompts[c.caption] for c in clips]),
    }


@torch.no_grad()
def encode_dataset(
    dataset: ClipDataset,
    codec: Codec,
    text: TextEncoder,
    out: str | Path,
    *,
    shard_clips: int = 128,
    progress: Callable[[int, int], None] | None = None,
    images: ImageEncoder | None = None,
) -> Path:
    """Write shards of latents [N, T, C, H, W] fp32, c2w [N, T, 4, 4] f64, K [N, T, 4] f64 and prompt [N], the row of each
    clip in text.safetensors (see `encode_prompts`), under `out`; with `images` also image [N, n, W], the tokens of each clip's
    first frame in the encoder's type.

    The codec's mode is taken (no sampling), so encoding is deterministic. A shard that exists is kept; a folder that was
    encoded by another codec or from other clips is refused.
    """
    from safetensors.torch import save_file

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    mark = {
        "format": FORMAT,
        "encoders": fingerprint(codec, text),
        "source": dataset.info["fingerprint"],
        "clips": len(dataset),
        **({} if images is None else {"images": images.fingerprint}),
    }
    if (out / "encoding.json").exists() and (there := json.loads((out / "encoding.json").read_text())) != mark:
        raise WorldlineError(f"{out} was encoded as {there}, not {mark}; choose another folder or delete this one")
    (out / "encoding.json").write_text(json.dumps(mark))
    prompts = {caption: i for i, caption in enumerate(dict.fromkeys(str(r["caption"]) for r in dataset.rows))}
    if not (out / "text.safetensors").exists():
        save_file(encode_prompts(list(prompts), text), out / "text.tmp")
        os.replace(out / "text.tmp", out / "text.safetensors")
    count = -(-len(dataset) // shard_clips)
    device = next(v.device for v in codec.state_dict().values())
    together = max(1, min(8, PIXELS // dataset[0].frames[..., 0].size))
    for s in range(count):
        path = out / f"shard-{s:05d}.safetensors"
        if not path.exists():
            members = range(s * shard_clips, min((s + 1) * shard_clips, len(dataset)))
            groups = [
                _encoded([dataset[i] for i in members[at : at + together]], codec, prompts, device, images)
                for at in range(0, len(members), together)
            ]
            arrays = {key: torch.cat([group[key] for group in groups]) for key in groups[0]}
            save_file(arrays, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
        if progress is not None:
            progress(s + 1, count)
    kept = ("id", "split", "caption", "map_seed")
    rows = [{k: r[k] for k in kept if k in r} for r in dataset.rows]
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
