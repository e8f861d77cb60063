"""Inverse dynamics: which keys must have been held, judged by the frames alone.

A small network, trained on rendered clips of the simulator and shipped (`assets/evaluation/idm.safetensors`), reads
luminance: filters shared by six frames about a step, the energy of pairs of their sums over time (motion energy, Adelson
and Bergen 1985), a few convolutions, and a view of four steps to either side. What it reads on a replay is its ceiling; a
world whose keys can be read back as surely answers its player. It was shown blurred, noisy and decoded frames, so that
softness is not taken for stillness.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.evaluate.metrics.frames import check_clip, luminance
from worldline.evaluate.metrics.keys import CLASSES, KEY_AXES
from worldline.schema import ShapeError, WorldlineError

FILE = "idm.safetensors"
SHIPPED = Path(__file__).parents[1] / "assets" / "evaluation" / FILE
AT_ONCE = 256  # steps a forward
EPS = 1e-4  # keeps the root of no motion differentiable
FLAT = 4.0  # grey levels: contrast below which a frame is not stretched to unit contrast


@dataclass(frozen=True, kw_only=True)
class InverseDynamicsConfig:
    """Sizes. Frames of another size are resized to height x width."""

    height: int = 64
    width: int = 96
    before: int = 2  # frames before the two of a step that its filters see
    after: int = 2  # and after them
    filters: int = 24
    channels: tuple[int, int, int] = (64, 96, 128)
    hidden: int = 128
    reach: int = 2  # steps to either side that each of two temporal convolutions sees


class InverseDynamics(nn.Module):
    """Luminance [B, F, H, W] in 0..255 -> logits [B, F - 1, axes, classes] of the key held from frame t to t + 1."""

    def __init__(self, config: InverseDynamicsConfig) -> None:
        super().__init__()
        self.config = c = config
        near, mid, far = c.channels
        self.filters = nn.Conv2d(1, c.filters, 8, stride=4, padding=2)
        self.motion = nn.Conv2d(c.filters * (2 + c.before + c.after), 2 * near, 1)
        self.halve = nn.Conv2d(near, mid, 3, stride=2, padding=1)
        self.quarter = nn.Conv2d(mid, far, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, n) for n in (near, mid, far))
        self.whole = nn.Linear(far * (c.height // 16) * (c.width // 16), c.hidden)
        self.near = nn.Conv1d(c.hidden, c.hidden, 2 * c.reach + 1, padding=c.reach)
        self.far = nn.Conv1d(c.hidden, len(KEY_AXES) * CLASSES, 2 * c.reach + 1, padding=c.reach)

    def forward(self, light: Tensor) -> Tensor:
        c = self.config
        if light.ndim != 4 or light.shape[1] < 2 or light.shape[2:] != (c.height, c.width):
            raise ShapeError(f"luminance {tuple(light.shape)}: expected [B, F >= 2, {c.height}, {c.width}]")
        B, T = light.shape[0], light.shape[1] - 1
        level, spread = light.mean(dim=(2, 3), keepdim=True), light.std(dim=(2, 3), keepdim=True)
        seen = self.filters(((light - level) / spread.clamp_min(FLAT)).flatten(0, 1)[:, None]).unflatten(0, (B, T + 1))
        ends = [seen[:, :1]] * c.before, [seen[:, -1:]] * c.after
        steps = torch.cat([*ends[0], seen, *ends[1]], dim=1).unfold(1, 2 + c.before + c.after, 1)  # [B, T, C, h, w, n]
        x = steps.permute(0, 1, 5, 2, 3, 4).flatten(2, 3).flatten(0, 1)
        one, other = self.motion(x).float().chunk(2, dim=1)
        x = self.norms[0]((one.square() + other.square() + EPS).sqrt())
        for conv, norm in zip((self.halve, self.quarter), self.norms[1:], strict=True):
            x = F.silu(norm(conv(x)))
        x = F.silu(self.whole(x.flatten(1))).unflatten(0, (B, T)).transpose(1, 2)
        x = self.far(F.silu(self.near(x)))
        return x.transpose(1, 2).unflatten(2, (len(KEY_AXES), CLASSES)).float()


def save(model: InverseDynamics, directory: Path, card: dict[str, Any]) -> None:
    """idm.safetensors (half precision, its sizes in the metadata) and idm.json, the card."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, directory / FILE, {"config": json.dumps(asdict(model.config))})
    (directory / FILE).with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


@lru_cache(maxsize=2)
def load(path: Path = SHIPPED) -> InverseDynamics:
    """The model of a file, ready to read. Raises WorldlineError where it is missing."""
    from safetensors import safe_open

    if not path.is_file():
        raise WorldlineError(f"{path}: no inverse-dynamics model; train one (worldline evaluate --train-idm DATA)")
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["config"])
        state = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118
    model = InverseDynamics(InverseDynamicsConfig(**said | {"channels": tuple(said["channels"])}))
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [F, H, W, 3] -> luminance float32 [F, height, width]."""
    import cv2

    light = luminance(check_clip(frames))
    if light.shape[1:] == (height, width):
        return light
    how = cv2.INTER_AREA if light.shape[2] > width else cv2.INTER_LINEAR
    return np.stack([cv2.resize(f, (width, height), interpolation=how) for f in light])


@torch.no_grad()
def read_keys(frames: np.ndarray, model: InverseDynamics | None = None) -> np.ndarray:
    """uint8 [F + 1, H, W, 3] -> int8 [F, 3], the likeliest class of each axis of `metrics.keys.KEY_AXES`. Long clips are read
    in spans that overlap by all that a step sees, so that their cutting changes nothing."""
    model = model or load()
    c = model.config
    light = torch.from_numpy(resized(frames, c.height, c.width))
    steps, margin = len(light) - 1, 2 * c.reach + max(c.before, c.after)
    found = []
    for at in range(0, steps, AT_ONCE):
        end = min(at + AT_ONCE, steps)
        first, last = max(at - margin, 0), min(end + margin, steps)
        logits = model(light[None, first : last + 1])[0]
        found.append(logits[at - first : end - first].argmax(dim=-1))
    return torch.cat(found).to(torch.int8).numpy() if found else np.zeros((0, len(KEY_AXES)), dtype=np.int8)
