"""Cameras as an estimator would have found them: errors that grow along a clip, and a scale of its own for every clip.

Structure from motion and SLAM leave three errors: each step is a little wrong, and steps wrong in a like way follow each
other, so that the path drifts; and the unit of length is anybody's guess, another one in every clip. The errors of a clip
belong to the clip: whoever reads it twice finds it wrong in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.schema import ShapeError, WorldlineError


@dataclass(frozen=True, kw_only=True)
class PoseNoise:
    """Sizes of the errors; the default is none. A step is from one latent frame to the next."""

    rotation: float = 0.0  # degrees: root mean square angle of a step's error
    translation: float = 0.0  # root mean square length of a step's error over the dataset's root mean square step
    scale: float = 0.0  # standard deviation of the logarithm of a clip's unit of length
    smooth: float = 0.7  # correlation of a step's error with the one before; 0: steps err independently
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rotation, self.translation, self.scale) < 0 or not 0 <= self.smooth < 1:
            raise WorldlineError(f"{self}: expected rotation, translation, scale >= 0 and 0 <= smooth < 1")

    @property
    def none(self) -> bool:
        """Whether nothing is changed."""
        return self.rotation == self.translation == self.scale == 0

    def apply(self, c2w: Tensor, ids: Sequence[str]) -> Tensor:
        """Paths c2w f64 [N, T, 4, 4] of clips `ids` -> the same as estimated. The first camera stays where it is."""
        if c2w.ndim != 4 or c2w.shape[2:] != (4, 4) or len(ids) != len(c2w):
            raise ShapeError(f"paths {tuple(c2w.shape)} of {len(ids)} clips; expected [N, T, 4, 4] of N clips")
        if self.none or c2w.shape[1] < 2:
            return c2w
        steps = torch.linalg.inv(c2w[:, :-1]) @ c2w[:, 1:]  # [N, T - 1, 4, 4]
        typical = steps[..., :3, 3].square().sum(-1).mean().sqrt()
        errors = torch.stack([self._errors(name, c2w.shape[1] - 1) for name in ids])  # [N, T - 1, 6], unit variance
        units = torch.stack([self._unit(name) for name in ids])
        turn = torch.deg2rad(torch.as_tensor(self.rotation / 3**0.5, dtype=c2w.dtype)) * errors[..., :3]
        wrong = steps.clone()
        wrong[..., :3, :3] = steps[..., :3, :3] @ _rotations(turn)
        wrong[..., :3, 3] += self.translation / 3**0.5 * typical * errors[..., 3:]
        wrong[..., :3, 3] *= units[:, None, None]
        path = [c2w[:, 0]]
        for t in range(wrong.shape[1]):
            path.append(path[-1] @ wrong[:, t])
        return torch.stack(path, dim=1)

    def _unit(self, name: str) -> Tensor:
        return torch.exp(self.scale * torch.randn((), dtype=torch.float64, generator=self._generator("unit", name)))

    def _errors(self, name: str, steps: int) -> Tensor:
        """A stationary first-order autoregressive walk [steps, 6] of unit variance."""
        fresh = torch.randn(steps, 6, dtype=torch.float64, generator=self._generator("steps", name))
        rows = [fresh[0]]
        for t in range(1, steps):
            rows.append(self.smooth * rows[-1] + (1 - self.smooth**2) ** 0.5 * fresh[t])
        return torch.stack(rows)

    def _generator(self, what: str, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{what} {self.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _rotations(vectors: Tensor) -> Tensor:
    """Rotation vectors [..., 3] in radians -> matrices [..., 3, 3]."""
    x, y, z = vectors.unbind(-1)
    nil = torch.zeros_like(x)
    skew = torch.stack([nil, -z, y, z, nil, -x, -y, x, nil], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)
