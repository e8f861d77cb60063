"""Any stage's model, driven along given cameras from a given start frame, to frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldline.rollout.bidirectional import sample
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.schema import CameraPath, Cameras, TextEmbedding, TimeGrid


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

    @torch.no_grad()
    def play(self, starts: np.ndarray, cameras: list[CameraPath], captions: list[str], seed: int = 0) -> np.ndarray:
        """starts: uint8 [B, H, W, 3]; cameras: B paths of F pixel frames in game units -> uint8 [B, F', H, W, 3], frame 0
        the start as the codec shows it; F' <= F is what fits whole chunks (and one clip, for a bidirectional model)."""
        grid: TimeGrid = self.codec.grid
        given, chunk = self.plan.visibility.prefix or 1, self.plan.visibility.chunk
        T = (len(cameras[0]) - 1) // grid.stride + 1
        T = min(T, self.whole_clip) if self.whole_clip else given + (T - given) // chunk * chunk
        views = [c[: grid.pixel_frames(T)].relative().scaled(self.move_scale).of_latents(grid) for c in cameras]
        poses = [Cameras.from_path(v) for v in views]
        batch = Cameras(torch.cat([p.w2c for p in poses]), torch.cat([p.K for p in poses]))
        text = self.text.encode(captions)
        video = torch.from_numpy(starts).permute(0, 3, 1, 2).float()[:, None] / 127.5 - 1  # [B, 1, 3, H, W]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            prefix = self.codec.encode(video).float()
            rng = torch.Generator().manual_seed(seed)
            noise = torch.randn(len(starts), T, *prefix.shape[2:], generator=rng)
            latents = self._latents(noise, prefix, batch, text, rng)
            frames = self.codec.decode(latents).float()
        return ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).numpy()

    def _latents(
        self, noise: Tensor, prefix: Tensor, cameras: Cameras, text: TextEmbedding, rng: torch.Generator
    ) -> Tensor:
        negative = self.text.encode([""]).expand(len(noise)) if self.plan.guidance != 1.0 else None
        if self.whole_clip:
            return sample(
                self.model, self.plan, noise, text, negative=negative, cameras=cameras, given=prefix, generator=rng
            )
        loop = ChunkLoop(self.model, self.plan, text, negative=negative, cache="ring", capacity=noise.shape[1])
        chunks = generate(loop, noise, cameras, prefix=prefix, generator=rng)
        return torch.cat([prefix, *(c.float() for c in chunks)], dim=1)
