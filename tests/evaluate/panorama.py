"""A world that is a painted cylinder: exact frames for any heading, and a player that sees it with planted faults."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import torch

from worldline.evaluate.episodes import Episode, other_controls, spin_controls
from worldline.evaluate.player import nominal_path
from worldline.schema import CameraPath, Controls, TimeGrid

K = np.array([0.444, 0.667, 0.5, 0.5])
HEIGHT, WIDTH = 64, 96


def texture(seed: int) -> np.ndarray:
    """Smooth colours, float32 [128, 1440, 3]: four columns a degree, closed around."""
    rng = np.random.default_rng(seed)
    wide = np.tile(rng.uniform(0, 255, (32, 180, 3)), (1, 3, 1)).astype(np.float32)
    return cv2.GaussianBlur(cv2.resize(wide, (4320, 128), interpolation=cv2.INTER_CUBIC), (0, 0), 2)[:, 1440:2880]


def render(headings: np.ndarray, seed: int = 0) -> np.ndarray:
    """headings [F] in degrees to the right -> uint8 [F, 64, 96, 3]."""
    wall = np.tile(texture(seed), (1, 3, 1))
    x = (np.arange(WIDTH) + 0.5 - K[2] * WIDTH) / (K[0] * WIDTH)
    y = (np.arange(HEIGHT) + 0.5 - K[3] * HEIGHT) / (K[1] * HEIGHT)
    X, Y = np.meshgrid(x, y)
    row = (64 + 60 * Y / np.sqrt(1 + X**2)).astype(np.float32)
    frames = []
    for heading in headings:
        column = ((heading + np.rad2deg(np.arctan(X))) % 360 * 4 + 1440).astype(np.float32)
        frames.append(cv2.remap(wall, column, row, cv2.INTER_LINEAR).round().clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def headings(path: CameraPath) -> np.ndarray:
    """Degrees turned right since the first frame, of a path of upright cameras."""
    forward = path.relative().c2w[:, :3, 2]
    return np.rad2deg(np.unwrap(np.arctan2(forward[:, 0], forward[:, 2])))


def episodes(spin_frames: int = 72, walk_frames: int = 20) -> list[Episode]:
    """One spin and one walk (which turns too: a cylinder has no depth to walk in)."""
    made = []
    for suite, frames, seed in (("spin", spin_frames, 3), ("walk", walk_frames, 4)):
        controls = spin_controls(frames, np.random.default_rng(seed))
        if suite == "walk":
            controls = Controls(controls.move, np.tile((2.0, 0, 0), (frames, 1)))
        path, other = (nominal_path(c, K, 4.0) for c in (controls, other_controls(controls)))
        made.append(
            Episode(suite, suite, "a cylinder", render(headings(path)), path, controls, render(headings(other)), other)
        )
    return made


class FaultyPlayer:
    """Stands in for a Player: the right world, seen late, mirrored, too slowly, not at all, or through noise."""

    device, bf16 = torch.device("cpu"), False
    codec = SimpleNamespace(encode=lambda video: video, decode=lambda video: video, grid=TimeGrid(4))

    def __init__(self, delay: int = 0, gain: float = 1.0, noise: float = 0.0, jumps: bool = False) -> None:
        self.delay, self.gain, self.noise, self.jumps = delay, gain, noise, jumps

    def play(self, starts: np.ndarray, cameras: list[CameraPath], captions: list[str], seed: int = 0) -> np.ndarray:
        shown = []
        for path in cameras:
            turned = headings(path) * self.gain
            if self.jumps:  # all frames of a latent show its last one
                turned = turned[(np.arange(len(turned)) + 3) // 4 * 4]
            late = np.concatenate([np.zeros(self.delay), turned[: len(turned) - self.delay]])
            frames = render(late).astype(np.float64)
            frames[1:] += np.random.default_rng(seed).normal(0, self.noise, frames[1:].shape) if self.noise else 0
            shown.append(frames.round().clip(0, 255).astype(np.uint8))
        return np.stack(shown)
