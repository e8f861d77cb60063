"""Training of the inverse-dynamics model on rendered clips, and what it then reads on maps it has never seen.

Frames are true ones, and ones that went through the codec; both are mirrored (with their labels), blurred, made noisy, and
given other levels, contrasts and channel mixtures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.data.reserved import refuse_reserved
from worldline.data.sources.doomrooms.policy import wall_contact
from worldline.evaluate.inverse_dynamics import (
    FILE,
    InverseDynamics,
    InverseDynamicsConfig,
    load,
    read_keys,
    resized,
    save,
)
from worldline.evaluate.metrics.keys import CLASSES, KEY_AXES, balanced_accuracy, confusion, held_keys, macro_f1
from worldline.evaluate.suites import seeds
from worldline.methods.base import Phase, Rng
from worldline.nn.precision import inference_dtype
from worldline.schema import WorldlineError
from worldline.train.config import TrainConfig
from worldline.train.loop import Progress, Trainer

if TYPE_CHECKING:
    from worldline.data.dataset import Clip, ClipDataset
    from worldline.models.codec import Codec

MIRRORED = (0, 2)  # axes whose sides a mirror exchanges
BLUR = (0.3, 2.0)  # pixels
NOISE = 10.0  # grey levels, at most
UNSEEN = -1  # label of a step that no frame tells: walking into a wall
Say = Callable[[str], None]
BRIEF: dict[str, Any] = {
    "steps": 1600, "batch_size": 8, "lr": 1e-3, "warmup": 50, "ema_decay": 0.995, "log_every": 50, "save_every": 100_000,
    "save_minutes": 1e9,
}  # fmt: skip # ten minutes of one core with all that comes before


@dataclass(frozen=True, kw_only=True)
class IDMTraining:
    """How it is trained. decoded: training clips that go through the codec; judged: held-out ones that do."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(**BRIEF))
    model: InverseDynamicsConfig = field(default_factory=InverseDynamicsConfig)
    window: int = 25  # frames of a sample
    decoded: int = 768
    share: float = 0.5  # of samples that are decoded ones
    judged: int = 96


@dataclass(frozen=True)
class KeyBatch:
    """light: float32 [B, F, H, W] in 0..255; keys: int64 [B, F - 1, 3], UNSEEN where no frame tells."""

    light: Tensor
    keys: Tensor


def labels(clip: Clip, walk_units_per_frame: float) -> np.ndarray:
    """int8 [F - 1, 3]: keys held in a clip of F frames; walking into a wall is UNSEEN."""
    n = len(clip.frames) - 1
    keys = held_keys(clip.controls[:n])
    keys[wall_contact(clip.controls[:n], clip.cameras.c2w, walk_units_per_frame), 1:] = UNSEEN
    return keys


class KeyWindows:
    """Random windows of clips as luminance, varied. pools: one or two (light uint8 [N, F, H, W], keys int8 [N, F - 1, 3]),
    the second drawn with probability `share`."""

    def __init__(self, pools: list[tuple[np.ndarray, np.ndarray]], window: int, share: float) -> None:
        self.pools, self.window, self.share = pools, window, share
        if pools[0][0].shape[1] < window:
            raise WorldlineError(f"clips of {pools[0][0].shape[1]} frames; expected at least {window}")

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> KeyBatch:
        """Batch `step` of a seed."""
        draw = np.random.default_rng([seed, step])
        light, keys = zip(*(self._one(draw) for _ in range(batch_size)), strict=True)
        return KeyBatch(torch.from_numpy(np.stack(light)).to(device), torch.from_numpy(np.stack(keys)).to(device))

    def _one(self, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        pool, asked = self.pools[1] if len(self.pools) > 1 and draw.random() < self.share else self.pools[0]
        clip, start = int(draw.integers(len(pool))), int(draw.integers(pool.shape[1] - self.window + 1))
        light = pool[clip, start : start + self.window].astype(np.float32)
        keys = asked[clip, start : start + self.window - 1].astype(np.int64)
        if draw.random() < 0.5:
            light, keys = light[:, :, ::-1], mirrored(keys)
        return varied(light, draw), keys


def mirrored(keys: np.ndarray) -> np.ndarray:
    """Keys of the mirrored picture: left and right change places."""
    out = keys.copy()
    for axis in MIRRORED:
        out[:, axis] = np.where(keys[:, axis] == UNSEEN, UNSEEN, CLASSES - 1 - keys[:, axis])
    return out


def varied(light: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Luminance float32 [F, H, W] in 0..255 under another gamma, gain (drifting) and offset; often blurred, sometimes noisy."""
    import cv2

    light = 255 * (light / 255) ** np.float32(np.exp(draw.uniform(-0.35, 0.35)))
    first, last = np.exp(draw.uniform(-0.3, 0.3, 2))
    gain = np.linspace(first, last, len(light)).astype(np.float32)
    light = light * gain[:, None, None] + np.float32(draw.uniform(-20, 20))
    if draw.random() < 0.5:
        sigma = draw.uniform(*BLUR)
        light = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in light])
    if draw.random() < 0.3:
        light = light + draw.standard_normal(light.shape, dtype=np.float32) * np.float32(draw.uniform(0, NOISE))
    return np.ascontiguousarray(light.clip(0, 255), dtype=np.float32)


class KeyReading:
    """Cross-entropy on every axis, classes weighted to count alike (balanced accuracy is what is wanted)."""

    def __init__(self, model: InverseDynamics, keys: np.ndarray) -> None:
        """keys: int [N, F, 3], of all training steps: how often every class is asked for."""
        self.model, self.roles = model, {"model": model}
        self.phases = (Phase("keys", "model", self.loss),)
        counts = [np.bincount(keys[..., a][keys[..., a] >= 0].ravel(), minlength=CLASSES) for a in range(len(KEY_AXES))]
        if missing := [axis for axis, count in zip(KEY_AXES, counts, strict=True) if not count.all()]:
            raise WorldlineError(
                f"no clip has every key of {', '.join(missing)}; expected all of them, see `data build`"
            )
        self.weights = [torch.tensor(c.sum() / (CLASSES * c), dtype=torch.float32) for c in counts]

    def loss(self, batch: KeyBatch, rng: Rng) -> dict[str, Tensor]:
        """`loss` and the share of steps read right on each axis."""
        logits = self.model(batch.light)
        out: dict[str, Tensor] = {}
        total = logits.new_zeros(())
        for a, axis in enumerate(KEY_AXES):
            wanted, seen = batch.keys[..., a].flatten(), logits[:, :, a].flatten(0, 1)
            weight = self.weights[a].to(seen.device)
            total = total + F.cross_entropy(seen, wanted, weight, ignore_index=UNSEEN, label_smoothing=0.02)
            told = wanted != UNSEEN
            out[axis] = (seen.argmax(dim=-1) == wanted)[told].float().mean().detach()
        return {"loss": total / len(KEY_AXES), **out}

    def after_step(self, step: int) -> None:
        """Nothing moves beside the model."""


def train_idm(
    clips: ClipDataset, codec: Codec | None, out: Path, options: IDMTraining | None = None, *, seed: int = 0,
    progress: Progress | None = None, say: Say = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Train on the split `train` of `clips`, judge on `heldout`, write the model and its card to `out`; returns the card.

    Maps that the evaluation uses are left out, those kept for it refused. codec: what the second half of the samples went
    through; none: true frames alone. Raises WorldlineError on a data set without held-out maps or with too short clips.
    """
    options = options or IDMTraining()
    train, held_out = clips.split("train"), clips.split("heldout")
    refuse_reserved({r["map_seed"] for r in clips.rows}, f"{clips.root}")
    used = set(seeds()["id"])
    train.rows = [r for r in train.rows if int(r["map_seed"]) not in used]
    began = time.monotonic()
    say(f"{len(train)} clips of {len({r['map_seed'] for r in train.rows})} maps; {len(held_out)} held out")
    pools = [_pool(train, range(len(train)), options.model, None, seed)]
    if codec is not None:
        some = np.random.default_rng(seed).permutation(len(train))[: options.decoded]
        pools.append(_pool(train, some.tolist(), options.model, codec, seed))
        say(f"{len(some)} of them through the codec, {time.monotonic() - began:.0f} s")
    torch.manual_seed(seed)
    model = InverseDynamics(options.model)
    windows = KeyWindows(pools, options.window, options.share)
    trainer = Trainer(KeyReading(model, pools[0][1]), windows, options.train, out / "train", progress=progress)
    result = trainer.fit()
    if not result.finished:
        raise KeyboardInterrupt
    seconds = time.monotonic() - began
    model.load_state_dict(trainer.trained_state("model"))
    card: dict[str, Any] = {
        "licence": "Apache-2.0",
        "reads": "turn, forward, strafe keys of a step from the frames about it, luminance at 96x64, 16 a second",
        "data": f"{len(train)} clips of {train.info['source']} ({clips.info['fingerprint']}), maps of the split `id` left out",
        "seed": seed,
        "steps": result.step,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    save(model, out, card)
    load.cache_clear()
    read = load(out / FILE)
    card["heldout"] = {"truth": judged(read, held_out, range(len(held_out)))}
    if codec is not None:
        some = np.linspace(0, len(held_out) - 1, min(options.judged, len(held_out))).astype(int)
        card["heldout"]["codec"] = judged(read, held_out, some.tolist(), codec)
    save(read, out, card)
    return card


def judged(
    model: InverseDynamics, clips: ClipDataset, which: range | list[int], codec: Codec | None = None
) -> dict[str, Any]:
    """Balanced accuracy and F1 of each axis on clips as they are, or as the codec shows them; counts [asked][read]."""
    speed = float(clips.info["walk_units_per_frame"])
    counts = np.zeros((len(KEY_AXES), CLASSES, CLASSES), dtype=int)
    for i in which:
        clip = clips[i]
        asked = labels(clip, speed)
        read = read_keys(clip.frames if codec is None else decoded(codec, clip.frames), model)
        told = (asked != UNSEEN).all(axis=1)
        counts += confusion(asked[told], read[told])
    accuracy = {axis: round(balanced_accuracy(c), 4) for axis, c in zip(KEY_AXES, counts, strict=True)}
    return {
        "clips": len(which),
        "steps": int(counts[0].sum()),
        "balanced_accuracy": accuracy | {"mean": round(float(np.mean(list(accuracy.values()))), 4)},
        "f1": {axis: round(macro_f1(c), 4) for axis, c in zip(KEY_AXES, counts, strict=True)},
        "counts": {axis: c.tolist() for axis, c in zip(KEY_AXES, counts, strict=True)},
    }


@torch.no_grad()
def decoded(codec: Codec, frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] through the codec (on the CPU) and back, the clip filled up to whole latents by its last frame."""
    from worldline.data.encode import to_frames, to_video

    n = len(frames)
    missing = -(n - 1) % codec.grid.stride
    whole = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames
    with torch.autocast("cpu", torch.bfloat16, enabled=inference_dtype("cpu") == torch.bfloat16):
        video = codec.decode(codec.encode(to_video(whole)[None]))
    return to_frames(video.float())[0, :n].numpy()


def _pool(
    clips: ClipDataset, which: range | list[int], size: InverseDynamicsConfig, codec: Codec | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Luminance and keys of clips. The channels of every clip are mixed a little differently: colours tell no keys."""
    speed, draw = float(clips.info["walk_units_per_frame"]), np.random.default_rng([seed, 1])
    light, keys = [], []
    for i in which:
        clip = clips[i]
        frames = clip.frames if codec is None else decoded(codec, clip.frames)
        if draw.random() < 0.5:
            frames = frames[..., draw.permutation(3)]
        light.append(resized(frames, size.height, size.width).round().clip(0, 255).astype(np.uint8))
        keys.append(labels(clip, speed))
    if not light or len({len(k) for k in keys}) != 1:
        raise WorldlineError(f"clips of lengths {sorted({len(k) + 1 for k in keys})}; expected one length")
    return np.stack(light), np.stack(keys)
