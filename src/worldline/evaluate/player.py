"""Any stage's model, driven along given cameras from a given start frame, to frames.

Three modes, told apart by the player's fields: a bidirectional model makes a whole clip at once (`whole_clip`), a causal
one goes chunk by chunk as a stream does, with the many steps and the guidance of a teacher or the few of a student (both
in `plan`). A base model without cameras takes them and ignores them: its response to control is the floor.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.control.camera import CameraIntegrator
from worldline.functional.camera import cameras_of_path
from worldline.rollout.bidirectional import sample
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.schema import CameraPath, Cameras, Controls, ShapeError, TextEmbedding, TimeGrid, WorldlineError


def nominal_path(controls: Controls, K: np.ndarray, walk_units_per_frame: float) -> CameraPath:
    """The cameras F + 1 that F control rows ask for where nothing stands in the way, in game units: what live play feeds
    a model. K: [4] normalised intrinsics."""
    integrator = CameraIntegrator(K, 1.0, walk_units_per_frame)
    start = CameraPath(integrator.pose[None], integrator.K)
    walked = integrator.extend(controls)
    return CameraPath(np.concatenate([start.c2w, walked.c2w]), np.concatenate([start.K, walked.K]))


@dataclass(frozen=True)
class Request:
    """Everything a model is given: prefix latents [B, 1, C, H, W], noise [B, T, C, H, W], cameras of the T latents,
    prompts, and the generator of fresh noise."""

    prefix: Tensor
    noise: Tensor
    cameras: Cameras
    text: TextEmbedding
    negative: TextEmbedding | None
    generator: torch.Generator


@dataclass(frozen=True)
class Player:
    """A model with what it needs to be played: codec, prompts, its plan, and whether it works on whole clips."""

    model: Any
    codec: Any
    text: Any
    plan: RolloutPlan
    move_scale: float
    whole_clip: int | None = None  # latent frames a bidirectional model makes at once; None: chunk by chunk
    bf16: bool = True
    images: Any = None  # encoder of start images, where the model is told of them beside their latents

    def __post_init__(self) -> None:
        if not self.whole_clip and self.plan.visibility.prefix != 1:
            raise WorldlineError(
                f"prefix {self.plan.visibility.prefix}: expected 1, every episode gives its first frame"
            )

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def latents(self, pixel_frames: int) -> int:
        """T: how many latent frames of an episode are played: whole chunks, and at most one clip of a bidirectional
        model. Raises WorldlineError where not even one chunk fits."""
        grid, plan = self.codec.grid, self.plan.visibility
        T, given = (pixel_frames - 1) // grid.stride + 1, 1
        T = min(T, self.whole_clip) if self.whole_clip else given + (T - given) // plan.chunk * plan.chunk
        if given >= T:
            need = grid.pixel_frames(given + (1 if self.whole_clip else plan.chunk))
            raise WorldlineError(f"an episode of {pixel_frames} frames; expected at least {need} for one chunk")
        return T

    def play(self, starts: np.ndarray, cameras: list[CameraPath], captions: list[str], seed: int = 0) -> np.ndarray:
        """starts: uint8 [B, H, W, 3]; cameras: B paths of F pixel frames in game units -> uint8 [B, F', H, W, 3], frame 0
        the start as the codec shows it; F' <= F is what `latents` admits."""
        return np.concatenate(list(self.stream(starts, cameras, captions, seed)), axis=1)

    @torch.no_grad()
    def stream(
        self,
        starts: np.ndarray,
        cameras: list[CameraPath],
        captions: list[str],
        seed: int = 0,
        *,
        show_start: bool = True,
    ) -> Generator[np.ndarray, None, None]:
        """What `play` returns, piece by piece as it becomes ready on the host: the start frame (unless `show_start` is
        off: whoever gave it need not wait for it), then chunks (for a bidirectional model, the frames of one latent after
        the other once the clip is done)."""
        request, state = self.request(starts, cameras, captions, seed), None
        if not show_start:
            with self._autocast():
                state = self.codec.state_after(request.prefix)
        for latents in self._pieces(request, show_start):
            with self._autocast():
                video, state = self.codec.decode_stream(latents, state)
            yield to_uint8(video)

    @torch.no_grad()
    def request(self, starts: np.ndarray, cameras: list[CameraPath], captions: list[str], seed: int = 0) -> Request:
        """Encode starts and prompts, scale the cameras, draw the noise (on the CPU: equal on every device)."""
        if not len(starts) == len(cameras) == len(captions) or len({len(c) for c in cameras}) != 1:
            raise ShapeError(
                f"{len(starts)} starts, {len(captions)} captions and cameras of {[len(c) for c in cameras]} frames; "
                "expected one path of one common length for every start"
            )
        grid: TimeGrid = self.codec.grid
        T = self.latents(len(cameras[0]))
        views = [c[: grid.pixel_frames(T)].relative().scaled(self.move_scale).of_latents(grid) for c in cameras]
        poses = [cameras_of_path(v) for v in views]
        batch = Cameras.cat(poses).to(self.device)
        video = (
            torch.from_numpy(starts).to(self.device).permute(0, 3, 1, 2).float()[:, None] / 127.5 - 1
        )  # [B, 1, 3, H, W]
        with self._autocast():
            prefix = self.codec.encode(video).float()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(starts), T, *prefix.shape[2:], generator=generator).to(self.device)
        negative = self.text.encode([""]).expand(len(starts)).to(self.device) if self.plan.guidance != 1.0 else None
        text = self.text.encode(captions).to(self.device)
        text = text if self.images is None else text.seeing(self.images.encode(list(starts)))
        return Request(prefix, noise, batch, text, negative, generator)

    @torch.no_grad()
    def sample_clip(self, request: Request) -> Tensor:
        """The whole clip's latents [B, T, C, H, W] by the bidirectional model, the prefix in front."""
        with self._autocast():
            return sample(
                self.model, self.plan, request.noise, request.text, negative=request.negative,
                cameras=request.cameras, given=request.prefix, generator=request.generator,
            ).float()  # fmt: skip

    @torch.no_grad()
    def open_loop(self, request: Request) -> ChunkLoop:
        """A fresh chunk loop: the prompt's keys and values are made, nothing is committed."""
        capacity = request.noise.shape[1] if self.plan.visibility.window is None else None
        with self._autocast():
            return ChunkLoop(
                self.model, self.plan, request.text, negative=request.negative, cache="ring", capacity=capacity
            )

    def _pieces(self, request: Request, prefix: bool) -> Iterator[Tensor]:
        """Latents in the order in which they may be decoded: the prefix if asked for, then what follows it."""
        if prefix:
            yield request.prefix
        given = request.prefix.shape[1]
        if self.whole_clip:
            yield from self.sample_clip(request)[:, given:].split(1, dim=1)
            return
        loop = self.open_loop(request)
        chunks = generate(loop, request.noise, request.cameras, prefix=request.prefix, generator=request.generator)
        while True:
            with self._autocast():  # not around the yield: it would reach into the caller
                x0 = next(chunks, None)
            if x0 is None:
                return
            yield x0.float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def to_uint8(video: Tensor) -> np.ndarray:
    """video [B, F, 3, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3] on the host."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
