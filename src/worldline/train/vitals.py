"""What can be read off a training step without another forward: samples of weights, camera gradients, chunk statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from worldline.functional.flow import velocity_to_x0
from worldline.models.backbone import INJECTED
from worldline.schema import Cameras

PROBED, ELEMENTS = 24, 512  # parameters of a role that are sampled, and elements of each
BINS = 8  # spans of time that per-chunk statistics are told in


def local(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


class WeightProbe:
    """A fixed sample of a network's trained weights: ratios of norms over it stand for those over all of them."""

    def __init__(self, module: nn.Module) -> None:
        names = [n for n, p in module.named_parameters() if p.requires_grad]
        stride = max(1, -(-len(names) // PROBED))
        self.names = names[::stride]

    @torch.no_grad()
    def read(self, values: Mapping[str, Tensor]) -> Tensor:
        """The sampled elements, fp32 on the host, of parameters by name; those that are not there are left out."""
        found = [local(values[n]).detach().reshape(-1)[:ELEMENTS].float() for n in self.names if n in values]
        return torch.cat(found).cpu() if found else torch.zeros(0)


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|; 0 where both are nothing."""
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def moved_share(before: Tensor, after: Tensor) -> float:
    """Share of sampled elements that changed at all: what rounding swallows does not."""
    return float((before != after).float().mean()) if len(before) else 1.0


@torch.no_grad()
def steering_gradient(module: nn.Module) -> float | None:
    """Gradient norm over the layers that steer (a camera branch, motion, actions, rays); None where none is trained."""
    grads = [
        (None if p.grad is None else local(p.grad))
        for name, p in module.named_parameters()
        if p.requires_grad and any(part in name for part in INJECTED)
    ]
    if not grads:
        return None
    norms = [g.float().norm() for g in grads if g is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _gradient_norm(leaves: list[Tensor]) -> float:
    """Over all of them; what no gradient reached counts as zero."""
    grads = [x.grad.float().norm() for x in leaves if x.grad is not None]
    return float(torch.stack(grads).norm()) if grads else 0.0


@torch.no_grad()
def nonfinite(module: nn.Module, *, gradients: bool) -> list[str]:
    """Names of parameters whose value (or gradient) is not finite."""
    named = ((n, p.grad if gradients else p) for n, p in module.named_parameters())
    return [n for n, x in named if x is not None and not bool(torch.isfinite(local(x)).all())]


@dataclass(frozen=True)
class Statistics:
    """Of latents [B, n, C, H, W]: std [n] over everything but time, mean [B, n, C] over the picture."""

    std: Tensor
    mean: Tensor

    @staticmethod
    def of(x: Tensor) -> Statistics:
        """In fp32, without gradient."""
        x = x.detach().float()
        return Statistics(x.std(dim=(0, 2, 3, 4), unbiased=False), x.mean(dim=(3, 4)))

    @staticmethod
    def cat(parts: Iterable[Statistics]) -> Statistics:
        """One span of time after the other."""
        parts = list(parts)
        return Statistics(torch.cat([p.std for p in parts]), torch.cat([p.mean for p in parts], dim=1))


def flicker(levels: Tensor) -> Tensor:
    """How unsteady levels [B, T, C] (mean of a frame by channel) are: mean |x_{t+1} - 2 x_t + x_{t-1}|. A steady change
    of light or a pan has none; a level that jumps to and fro has four times its amplitude. T >= 3."""
    return levels.diff(n=2, dim=1).abs().mean()


class ForwardWatch:
    """Sees the forwards of one network while a loss is formed: what the camera's gradient is, and the x0 of every chunk.

    Use as a context around the loss and its backward. Cameras are replaced by equal ones that ask for a gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.steered = takes_cameras(module)
        self._poses: list[Tensor] = []
        self._motions: list[Tensor] = []
        self._given: Statistics | None = None
        self._chunks: dict[int, Statistics] = {}  # of a rollout, by first frame; the last prediction of a chunk stays
        self._whole: tuple[Statistics, Statistics | None, Tensor | None] | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> ForwardWatch:
        self._handles = [
            self.module.register_forward_pre_hook(self._before, with_kwargs=True),
            self.module.register_forward_hook(self._after, with_kwargs=True),
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cameras = kwargs.get("cameras")
        if not self.steered or not torch.is_grad_enabled() or not isinstance(cameras, Cameras):
            return None
        w2c, motion = (x.detach().requires_grad_() for x in (cameras.w2c, cameras.motion))
        self._poses.append(w2c)
        self._motions.append(motion)
        return args, {**kwargs, "cameras": replace(cameras, w2c=w2c, motion=motion)}

    @torch.no_grad()
    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if len(args) < 2 or not isinstance(out, Tensor):
            return
        x, sigma = args[0], args[1]
        if kwargs.get("cache") is not None:
            start = kwargs["cache"].frames
            if float(sigma.max()) > 0:
                self._chunks[start] = Statistics.of(velocity_to_x0(x, out.detach().float(), sigma))
            elif start == 0:
                self._given = Statistics.of(x)
            return
        half, positions = x.shape[1] // 2, kwargs.get("positions")
        forced = (
            positions is not None and 2 * half == len(positions) and bool((positions[:half] == positions[half:]).all())
        )
        x0 = velocity_to_x0(x, out.detach().float(), sigma)
        if forced:
            error = (x0[:, half:] - x[:, :half]).square().mean(dim=(0, 2, 3, 4))
            self._whole = Statistics.of(x0[:, half:]), Statistics.of(x[:, :half]), error
        else:
            self._whole = Statistics.of(x0), None, None

    def camera_gradients(self) -> dict[str, float]:
        """Gradient norms of the loss at what the model's config says it is steered by, `camera_poses` and `camera_motion`,
        where the data has cameras; zero also where the model was not given them."""
        config = getattr(self.module, "config", None)
        poses = {"camera_poses": _gradient_norm(self._poses)} if getattr(config, "camera", "none") != "none" else {}
        motion = {"camera_motion": _gradient_norm(self._motions)} if getattr(config, "motion", False) else {}
        return poses | motion

    def signals(self) -> dict[str, float]:
        """Statistics of x0 by spans of time. Rollouts: `std/k` and `shift/k` against the given frames (or the first chunk),
        `drift` (log ratio of std, last third to first third), `drift_level` (how far the mean went, in stds). Teacher
        forcing: `error/k` and `flicker` (against the truth's)."""
        if self._chunks:
            return _drift(Statistics.cat(self._chunks[k] for k in sorted(self._chunks)), self._given)
        if self._whole is None:
            return {}
        made, truth, error = self._whole
        out = {f"std/{k}": v for k, v in _binned(made.std).items()}
        if truth is not None and error is not None:
            out |= {f"error/{k}": v for k, v in _binned(error).items()}
            if made.mean.shape[1] >= 3:
                out["flicker"] = float(flicker(made.mean) / flicker(truth.mean).clamp_min(1e-6))
        return out


def _drift(made: Statistics, given: Statistics | None) -> dict[str, float]:
    """Of a rollout against the frames it was given."""
    first = given if given is not None else Statistics(made.std[:1], made.mean[:, :1])
    scale = first.std.mean().clamp_min(1e-6)
    shift = (made.mean - first.mean[:, -1:]).mean(dim=0).square().mean(dim=-1).sqrt() / scale  # [n], in stds
    out = {f"std/{k}": v for k, v in _binned(made.std / scale).items()}
    out |= {f"shift/{k}": v for k, v in _binned(shift).items()}
    if len(made.std) >= 3:
        third = max(1, len(made.std) // 3)
        ends = made.std[-third:].mean().clamp_min(1e-6) / made.std[:third].mean().clamp_min(1e-6)
        out["drift"] = float(ends.log())
        out["drift_level"] = float(shift[-third:].mean() - shift[:third].mean())
    return out


def _binned(values: Tensor) -> dict[int, float]:
    """At most BINS means of consecutive frames [n]."""
    return {k: float(part.mean()) for k, part in enumerate(values.tensor_split(min(BINS, len(values))))}


def takes_cameras(module: nn.Module) -> bool:
    """Whether a backbone's config says that where the camera is, or how it moves, changes its answer."""
    config = getattr(module, "config", None)
    return getattr(config, "camera", "none") != "none" or bool(getattr(config, "motion", False))
