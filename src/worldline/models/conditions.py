"""What a forward forms from noise levels, cameras and positions before its first block: the same for every layer, and much of
it for every step of a chunk.

Legend: B batch, T latent frames, S tokens a frame, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from worldline.functional.camera import actions_of_motion, classes_of_actions
from worldline.nn.camera import CameraMatrices
from worldline.nn.layers import TwoLayer, sinusoidal_embedding
from worldline.schema import Cameras, ShapeError

MOTION_SCALE = 10.0  # brings a latent's usual motion (0.14 rad, 0.08 units) to order one


class Modulation(NamedTuple):
    """What the clock does to one block, each [B, T, 1, D] fp32; factor = 1 + scale."""

    shift1: Tensor
    factor1: Tensor
    gate1: Tensor
    shift2: Tensor
    factor2: Tensor
    gate2: Tensor


@dataclass(frozen=True)
class Placement:
    """Where a call's tokens are, in the clip and in the world: the same at every noise level."""

    rope: tuple[Tensor, Tensor]
    cameras: CameraMatrices | None = None
    camera_tokens: Tensor | None = None
    rays: Tensor | None = None  # [B, T, S, D], embedded


@dataclass(frozen=True)
class Conditions:
    """All that a forward forms from noise level, cameras and positions, for one level."""

    placement: Placement
    blocks: Tensor  # [layers, 6, B, T, 1, D], the modulation of every block
    head: Tensor  # [2, B, T, 1, D], shift and factor
    given: Tensor | None = None  # [B, T], 1 where a backbone is told that the frame is given

    def tensors(self) -> list[Tensor]:
        """Every tensor of it, in a fixed order."""
        where = self.placement
        cam = [] if where.cameras is None else [where.cameras.query, where.cameras.key, where.cameras.out]
        optional = [x for x in (where.camera_tokens, where.rays, self.given) if x is not None]
        return [self.blocks, self.head, *where.rope, *cam, *optional]

    def of(self, tensors: Sequence[Tensor]) -> Conditions:
        """The same parts made of other `tensors`, as `tensors()` orders them."""
        left, where = iter(tensors), self.placement
        blocks, head, rope = next(left), next(left), (next(left), next(left))
        cam = None if where.cameras is None else CameraMatrices(next(left), next(left), next(left))
        tokens, rays, given = (None if x is None else next(left) for x in (where.camera_tokens, where.rays, self.given))
        return Conditions(Placement(rope, cam, tokens, rays), blocks, head, given)


class Steered(nn.Module):
    """A clock whose vector is moved by what the camera did since the frame before, and by discrete actions (AdaLN)."""

    def __init__(self, dim: int, freq_dim: int, *, motion: bool, actions: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        if motion:
            self.motion_embedder = TwoLayer(6, dim, "silu")
        if actions:
            self.action_embedder = TwoLayer(actions, dim, "silu")

    def silence(self) -> None:
        """Zero the last layers: the clock as it was before."""
        for name in ("motion_embedder", "action_embedder"):
            for parameter in getattr(self, name).linear_2.parameters() if hasattr(self, name) else ():
                nn.init.zeros_(parameter)

    def steered(self, temb: Tensor, cameras: Cameras | None) -> Tensor:
        """temb [B, T, D] fp32, with what was done added; call it without autocast."""
        if cameras is not None and hasattr(self, "motion_embedder"):
            temb = temb + self.motion_embedder(MOTION_SCALE * cameras.motion.float())
        if cameras is not None and hasattr(self, "action_embedder"):
            temb = temb + self.action_embedder(self._actions(cameras))
        return temb

    def _actions(self, cameras: Cameras) -> Tensor:
        """The actions that are given, or (where none are) those that the camera's motion shows: ten of them, or, where the
        layer is as wide as the clock's, WorldPlay's number of one of 81 as its models take it, embedded like a time."""
        width = self.action_embedder.linear_1.in_features
        actions = cameras.actions
        if actions is None:
            actions = actions_of_motion(cameras.motion)
            if width == self.freq_dim != actions.shape[-1]:
                actions = sinusoidal_embedding(classes_of_actions(actions).float(), width)
        if actions.shape[-1] != width:
            raise ShapeError(f"{actions.shape[-1]} discrete actions; this model expects {width} a latent frame")
        return actions.float()
