"""Where the frames of a walk that outgrew its training stand: policies for rotary positions.

Rotary attention sees differences of positions alone, with two exceptions, and these leave what was trained:

- the distance to the sinks, which grows with the walk;
- fused PRoPE, where rotations R and cameras P act on the same dims: q R_i P_i P_j^-1 R_j^T k. They do not commute, so that a
  common shift of both positions turns the relative camera P_i P_j^-1 (`R P_i P_j^-1 R^T`).

A policy keeps the end of the present chunk at position `horizon` at most, and the frames of the window right before it; the
sinks keep theirs:

- `absolute`: positions are latent indices, without bound;
- `rebased`: positions count what is in sight, sinks then window, as if the frames between had never been (StreamingLLM,
  arXiv:2309.17453);
- `clamp`: positions are latent indices until the walk is as long as the longest clip of training, `horizon` latent frames.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.functional.prope import projection_matrices
from worldline.functional.rope import rope_angles
from worldline.models.backbone import Backbone
from worldline.nn.camera import block_diagonal
from worldline.nn.kv_cache import RingCache, Stream
from worldline.schema import Cameras, WorldlineError

Positions = Literal["absolute", "rebased", "clamp"]


class Rotary(Protocol):
    """What a backbone's config says of its keys. rotary: base of the frequencies, and how many pairs of a head turn with time,
    row and column (None: as `rope_angles` splits them)."""

    @property
    def head_dim(self) -> int: ...
    @property
    def rotary(self) -> tuple[float, tuple[int, int, int] | None]: ...
    @property
    def camera(self) -> str: ...
    @property
    def camera_dims(self) -> int: ...


POSITIONS: tuple[Positions, ...] = ("absolute", "rebased", "clamp")


def shift_at(policy: Positions, visibility: Visibility, horizon: int | None, end: int) -> int:
    """By how many latent frames the window's positions lie before its indices, for the chunk that ends before `end`."""
    if policy == "absolute" or visibility.window is None:
        return 0
    in_sight = visibility.window + visibility.sink
    return max(0, end - (in_sight if horizon is None else max(in_sight, horizon)))


def time_turn(config: Rotary, frames: int) -> Tensor:
    """What moves a rotated key `frames` later in time, multiplied on the right: float64 [Dh, Dh]."""
    theta, sizes = config.rotary
    cos, sin = (
        x.double().flatten() for x in rope_angles(torch.tensor([[frames, 0, 0]]), config.head_dim, theta, sizes)
    )
    pairs = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], dim=-2)  # [Dh / 2, 2, 2]
    return torch.block_diag(*pairs.unbind(0))


def moved_key(config: Rotary, frames: int, camera: Cameras | None) -> Tensor:
    """What a key of one frame, batch 1, is multiplied by (on the right) to stand `frames` latent frames later in time, under its
    camera [1, 1]: float64 [Dh, Dh]."""
    turn, carried = time_turn(config, frames), carried_by(config, camera)
    return turn if carried is None else torch.linalg.solve(carried[0, 0], turn.to(carried.device) @ carried[0, 0])


def carried_by(config: Rotary, cameras: Cameras | None) -> Tensor | None:
    """What a key was multiplied by after its rotation, float64 [B, T, Dh, Dh]; None where nothing was."""
    if config.camera != "fused" or cameras is None:
        return None
    _, inverse = projection_matrices(cameras.w2c, cameras.K)
    carrying = block_diagonal(inverse.mT.double(), config.camera_dims)  # [B, T, Dc, Dc]
    whole = torch.eye(config.head_dim, dtype=torch.float64, device=carrying.device).repeat(*carrying.shape[:2], 1, 1)
    whole[..., : config.camera_dims, : config.camera_dims] = carrying
    return whole


def turn_window(model: Backbone, cache: RingCache, turns: dict[int, tuple[int, Tensor | None]]) -> None:
    """Move frames of the window in time. turns: frame -> (latent frames later than it was written, `carried_by` [B, 1, Dh,
    Dh] in the present world).

    A key carries its camera after its rotation, k' = k R A, so what moves it is A^-1 R(frames) A, one matrix a frame.
    """
    Dh = model.config.head_dim
    turning: list[Tensor] = [torch.eye(Dh, dtype=torch.float64)[None, None]] * cache.window
    for frame, (later, carried) in turns.items():
        turn = time_turn(model.config, later)[None, None]
        if carried is not None:
            turn = torch.linalg.solve(carried, turn.to(carried.device) @ carried)
        turning[cache.slot(frame)] = turn
    batch = max(len(t) for t in turning)
    device = next(model.parameters()).device
    each = torch.cat([t.to(device, torch.float32).expand(batch, -1, -1, -1) for t in turning], dim=1)

    def fn(stream: Stream, k: Tensor) -> Tensor:
        # The camera branch knows no positions.
        return (k.float() @ each[:, None]).to(k.dtype) if stream[1] == "main" else k

    with torch.autocast(device.type, enabled=False):
        cache.turn(fn)


def check_policy(model: Backbone, policy: Positions) -> None:
    """Raises WorldlineError for a backbone whose keys are made in another way than `turn_window` knows."""
    if policy != "absolute" and not model.turns:
        raise WorldlineError(
            f"positions {policy!r} with a {type(model).__name__}; expected 'absolute', the one policy of this backbone"
        )
