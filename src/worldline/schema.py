"""Plain types for the things that flow: time grids, cameras, controls, text, batches.

Legend: B batch, T latent frames, F pixel frames, C channels, H W latent grid, L tokens.
Cameras are `c2w` float64 4x4 with OpenCV axes (x right, y down, z forward); +yaw turns right, +pitch looks up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class WorldlineError(ValueError):
    """A wrong input: the message names the value, what was expected, and the mend."""


class ShapeError(WorldlineError):
    """An array or tensor whose shape does not fit its neighbours."""


@dataclass(frozen=True)
class TimeGrid:
    """Arithmetic of a causal video codec: latent 0 is pixel frame 0 alone, latent k covers `stride` pixel frames."""

    stride: int = 4

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise WorldlineError(f"stride is {self.stride}; expected a whole number of at least 1")

    def pixel_frames(self, latent_frames: int) -> int:
        """F = (T - 1) * stride + 1."""
        if latent_frames < 1:
            raise WorldlineError(f"latent_frames is {latent_frames}; expected at least 1")
        return (latent_frames - 1) * self.stride + 1

    def latent_frames(self, pixel_frames: int) -> int:
        """T such that pixel_frames(T) == F. Raises WorldlineError where no such T exists."""
        if pixel_frames < 1 or (pixel_frames - 1) % self.stride:
            near = max(1, (pixel_frames - 1) // self.stride * self.stride + 1)
            raise WorldlineError(
                f"{pixel_frames} pixel frames do not fit a codec of stride {self.stride}: expected "
                f"{self.stride}n+1; cut the clip to {near} frames"
            )
        return (pixel_frames - 1) // self.stride + 1

    def pixels_of(self, latent: int) -> range:
        """Pixel frames decoded from latent `latent`: r(k-1)+1 .. rk (0 alone for k = 0)."""
        return range(0, 1) if latent == 0 else range(self.stride * (latent - 1) + 1, self.stride * latent + 1)

    def pose_frame(self, latent: int) -> int:
        """The pixel frame whose pose is the pose of latent `latent`."""
        return self.stride * latent

    def actions_of(self, latent: int) -> range:
        """The actions (action t acts between pixel frames t and t+1) that drive latent `latent`; none for k = 0."""
        return range(0) if latent == 0 else range(self.stride * (latent - 1), self.stride * latent)


@dataclass(frozen=True)
class ChunkPlan:
    """Latent frames 0..num_latents in chunks: `prefix` given frames first, then chunks of `chunk` frames."""

    num_latents: int
    chunk: int = 1
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.num_latents < 1 or not 0 <= self.prefix < self.num_latents:
            raise WorldlineError(f"{self}: expected chunk >= 1 and 0 <= prefix < num_latents")
        if (self.num_latents - self.prefix) % self.chunk:
            raise WorldlineError(
                f"{self.num_latents} latents less a prefix of {self.prefix} do not divide into chunks of {self.chunk}; "
                f"use {self.prefix + (self.num_latents - self.prefix) // self.chunk * self.chunk} latents"
            )

    def chunks(self) -> list[tuple[int, int]]:
        """Half-open [start, stop) of every generated chunk."""
        return [(s, s + self.chunk) for s in range(self.prefix, self.num_latents, self.chunk)]


@dataclass(frozen=True)
class CameraPath:
    """Cameras of F frames. c2w: float64 [F, 4, 4]; K: float64 [F, 4] = fx/W, fy/H, cx/W, cy/H."""

    c2w: np.ndarray
    K: np.ndarray

    def __post_init__(self) -> None:
        c2w, K = np.asarray(self.c2w, dtype=np.float64), np.asarray(self.K, dtype=np.float64)
        if K.shape == (4,):
            K = np.broadcast_to(K, (len(c2w), 4)).copy()
        if c2w.ndim != 3 or c2w.shape[1:] != (4, 4) or K.shape != (len(c2w), 4):
            raise ShapeError(f"c2w {c2w.shape} and K {K.shape}: expected [F, 4, 4] and [F, 4] (or [4])")
        if not (np.isfinite(c2w).all() and np.isfinite(K).all()):
            raise WorldlineError("camera path holds a non-finite value; expected finite poses and intrinsics")
        object.__setattr__(self, "c2w", c2w)
        object.__setattr__(self, "K", K)

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, index: slice | np.ndarray | list[int]) -> CameraPath:
        return CameraPath(self.c2w[index], self.K[index])

    def relative(self) -> CameraPath:
        """First-frame gauge: c2w_i <- inv(c2w_0) c2w_i, so that frame 0 is the identity."""
        return CameraPath(np.linalg.inv(self.c2w[0]) @ self.c2w, self.K)

    def scaled(self, scale: float) -> CameraPath:
        """Translations multiplied by the dataset's one scale constant."""
        c2w = self.c2w.copy()
        c2w[:, :3, 3] *= scale
        return CameraPath(c2w, self.K)

    def of_latents(self, grid: TimeGrid) -> CameraPath:
        """The poses of the latent frames of a clip with these pixel-frame poses: latent k takes pixel frame r k."""
        return self[[grid.pose_frame(k) for k in range(grid.latent_frames(len(self)))]]


@dataclass(frozen=True)
class Controls:
    """What the player asks for, one row a pixel-frame transition t -> t+1, semantic and finite.

    move: float32 [F, 3] (right, up, forward) in units of full walking speed, [-1, 1];
    look: float32 [F, 3] (yaw right, pitch up, roll) in degrees per frame;
    keys: the held keys of each frame (for overlays and logs), e.g. ("w", "left").
    """

    move: np.ndarray
    look: np.ndarray
    keys: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        move, look = np.asarray(self.move, dtype=np.float32), np.asarray(self.look, dtype=np.float32)
        if move.ndim != 2 or move.shape[1] != 3 or look.shape != move.shape:
            raise ShapeError(f"move {move.shape} and look {look.shape}: expected two arrays [F, 3]")
        if not (np.isfinite(move).all() and np.isfinite(look).all()):
            raise WorldlineError("controls hold a non-finite value; expected finite move and look")
        keys = self.keys or tuple(() for _ in range(len(move)))
        if len(keys) != len(move):
            raise ShapeError(f"{len(keys)} key rows for {len(move)} frames; expected one row a frame")
        object.__setattr__(self, "move", move)
        object.__setattr__(self, "look", look)
        object.__setattr__(self, "keys", keys)

    def __len__(self) -> int:
        return len(self.move)

    def __getitem__(self, index: slice) -> Controls:
        return Controls(self.move[index], self.look[index], self.keys[index])

    @staticmethod
    def still(frames: int) -> Controls:
        """No motion for `frames` frames."""
        return Controls(np.zeros((frames, 3)), np.zeros((frames, 3)))

    @staticmethod
    def concat(parts: list[Controls]) -> Controls:
        """One control track after the other."""
        return Controls(
            np.concatenate([p.move for p in parts]),
            np.concatenate([p.look for p in parts]),
            tuple(k for p in parts for k in p.keys),
        )


@dataclass(frozen=True)
class TextEmbedding:
    """A cached text embedding. tokens: [B, L, D]; mask: bool [B, L]; fingerprint names the encoder that made it; image: the
    last so many places are of the start image, and stay where the prompt is dropped."""

    tokens: Tensor
    mask: Tensor
    fingerprint: str = ""
    image: int = 0

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.mask.shape != self.tokens.shape[:2]:
            raise ShapeError(
                f"text tokens {tuple(self.tokens.shape)} and mask {tuple(self.mask.shape)}: expected [B, L, D] and [B, L]"
            )

    def to(self, device: torch.device | str) -> TextEmbedding:
        return replace(self, tokens=self.tokens.to(device), mask=self.mask.to(device))

    def expand(self, batch: int) -> TextEmbedding:
        """The one prompt of a batch-1 embedding for `batch` samples."""
        return replace(self, tokens=self.tokens.expand(batch, -1, -1), mask=self.mask.expand(batch, -1))

    def seeing(self, image: Tensor) -> TextEmbedding:
        """These prompts with the tokens of B start images [B, N, W], W <= D, in their last N places. Raises ShapeError."""
        (B, L, D), n = self.tokens.shape, image.shape[1]
        if image.ndim != 3 or len(image) != B or not 0 < n < L or image.shape[2] > D:
            raise ShapeError(
                f"image tokens {tuple(image.shape)} for prompts [{B}, {L}, {D}]: expected [{B}, N, W] within"
            )
        tokens, mask = self.tokens.clone(), self.mask.clone()
        tokens[:, -n:], mask[:, -n:] = 0, True
        tokens[:, -n:, : image.shape[2]] = image.to(tokens)
        return replace(self, tokens=tokens, mask=mask, image=n)

    def under(self, other: TextEmbedding) -> TextEmbedding:
        """This prompt, one or B of them, with the start images of `other` [B, L, D]; itself where that has none."""
        import torch

        if not (n := other.image):
            return self
        own, (tokens, mask) = self.expand(len(other.tokens)), (other.tokens, other.mask)
        tokens = torch.cat([own.tokens[:, :-n], tokens[:, -n:]], dim=1)
        return replace(own, tokens=tokens, mask=torch.cat([own.mask[:, :-n], mask[:, -n:]], dim=1), image=n)

    def blind(self, rows: Tensor) -> TextEmbedding:
        """Without the start images of some samples, rows: bool [B] (text to video)."""
        if not self.image:
            return self
        tokens, mask = self.tokens.clone(), self.mask.clone()
        tokens[rows.to(tokens.device), -self.image :] = 0
        mask[rows.to(mask.device), -self.image :] = False
        return replace(self, tokens=tokens, mask=mask)


@dataclass(frozen=True)
class Cameras:
    """Camera tensors as models take them: what steers every latent frame.

    w2c: float32 [B, T, 4, 4]; K: float32 [B, T, 4] normalised fx, fy, cx, cy; motion: float32 [B, T, 6], what the camera
    did since the latent frame before (`functional.camera.relative_motion`), zeros where there is none; actions: float32
    [B, T, A], the discrete actions held during a latent frame (shares of its pixel frames), where a world has them.
    """

    w2c: Tensor
    K: Tensor
    motion: Tensor
    actions: Tensor | None = None

    def __post_init__(self) -> None:
        B, T = self.w2c.shape[:2]
        if self.w2c.ndim != 4 or self.w2c.shape[-2:] != (4, 4) or self.K.shape != (B, T, 4):
            raise ShapeError(f"w2c {tuple(self.w2c.shape)}, K {tuple(self.K.shape)}: expected [B, T, 4, 4], [B, T, 4]")
        if self.motion.shape != (B, T, 6):
            raise ShapeError(f"camera motion {tuple(self.motion.shape)}: expected {(B, T, 6)}")
        if self.actions is not None and self.actions.shape[:2] != (B, T):
            raise ShapeError(f"actions {tuple(self.actions.shape)}: expected [{B}, {T}, A]")

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cameras:
        actions = None if self.actions is None else change(self.actions)
        return Cameras(change(self.w2c), change(self.K), change(self.motion), actions)

    def __getitem__(self, frames: slice | list[int]) -> Cameras:
        """Some latent frames; each keeps its motion from the frame that was before it."""
        return self._each(lambda x: x[:, frames])

    def rows(self, samples: list[int]) -> Cameras:
        """Some samples of the batch."""
        return self._each(lambda x: x[samples])

    def to(self, device: torch.device | str) -> Cameras:
        return self._each(lambda x: x.to(device))

    def tile(self, batch: int = 1, frames: int = 1) -> Cameras:
        """The same cameras `batch` times along the batch and `frames` times along the frames."""
        return self._each(lambda x: x.repeat(batch, frames, *[1] * (x.ndim - 2)))

    @staticmethod
    def cat(parts: list[Cameras], dim: int = 0) -> Cameras:
        """Cameras of several samples as one batch; with dim 1, of spans of frames that follow each other. Raises ShapeError
        where only some have actions."""
        import torch

        actions = [p.actions for p in parts if p.actions is not None]
        if len(actions) not in (0, len(parts)):
            raise ShapeError(f"{len(actions)} of {len(parts)} samples have actions; expected all or none")
        w2c, K, motion = (torch.cat([getattr(p, name) for p in parts], dim) for name in ("w2c", "K", "motion"))
        return Cameras(w2c, K, motion, torch.cat(actions, dim) if actions else None)


@dataclass(frozen=True)
class LatentBatch:
    """What training methods consume. latents: float32 [B, T, C, H, W], normalised by the codec's statistics."""

    latents: Tensor
    text: TextEmbedding
    cameras: Cameras | None
    ids: tuple[str, ...] = field(default=())

    def to(self, device: torch.device | str) -> LatentBatch:
        cameras = None if self.cameras is None else self.cameras.to(device)
        return LatentBatch(self.latents.to(device), self.text.to(device), cameras, self.ids)
