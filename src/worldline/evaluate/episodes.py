"""Held-out episodes with their truth: what the simulator shows when it is driven by the same controls, and by others.

Two suites on maps that no training set may use: `spin` (turning on the spot by a pseudo-random command, for control
response) and `walk` (the data's own policy, for fidelity; each with a replay under other controls from the same start).
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldline.data.replay import Job, replay
from worldline.schema import CameraPath, Controls

FIRST_MAP = 950_000


@dataclass(frozen=True)
class Episode:
    """frames: uint8 [F, H, W, 3], frame 0 the given start; controls: F - 1 transitions; `other_*`: the same start under
    other controls (walk suite)."""

    id: str
    suite: str
    caption: str
    frames: np.ndarray
    cameras: CameraPath
    controls: Controls
    other_frames: np.ndarray | None = None
    other_cameras: CameraPath | None = None


def spin_controls(frames: int, rng: np.random.Generator, rate: float = 2.0) -> Controls:
    """Yaw in {-1, 0, 1} x rate degrees a frame, held 4 to 13 frames, nothing else."""
    yaw: list[float] = []
    while len(yaw) < frames:
        yaw += [rate * float(rng.integers(-1, 2))] * int(rng.integers(4, 14))
    look = np.zeros((frames, 3))
    look[:, 0] = yaw[:frames]
    keys = tuple(("right",) if y > 0 else ("left",) if y < 0 else () for y in look[:, 0])
    return Controls(np.zeros((frames, 3)), look, keys)


def other_controls(controls: Controls) -> Controls:
    """Mirrored turning and walking; standing still becomes turning: a player who did something else."""
    look, move = -controls.look, -controls.move
    still = (np.abs(look).max(axis=1) == 0) & (np.abs(move).max(axis=1) == 0)
    look[still, 0] = 2.0
    return Controls(move, look)


def build_episodes(root: str | Path, count: int, seed: int = 0, *, spin_frames: int = 96, walk_frames: int = 44) -> list[Episode]:
    """`count` episodes of either suite, kept under `root` and read back when they are there already."""
    from worldline.data.sources.doomrooms.policy import random_walk

    root = Path(root)
    settings = {"count": count, "seed": seed, "spin_frames": spin_frames, "walk_frames": walk_frames, "format": 1}
    mark, store = root / "episodes.json", root / "episodes.pickle"
    if mark.exists() and store.exists() and json.loads(mark.read_text()) == settings:
        return pickle.loads(store.read_bytes())
    jobs, plans = [], []
    for i in range(count):
        rng = np.random.default_rng([seed, i, 17])
        map_seed = FIRST_MAP + seed * 1000 + i
        spin, walk = spin_controls(spin_frames, rng), random_walk(walk_frames, rng)
        jobs += [Job(map_seed, spin, seed=i), Job(map_seed, walk, seed=i + 1), Job(map_seed, other_controls(walk), seed=i + 1)]
        plans.append((i, spin, walk))
    results, episodes = replay(jobs), []
    for (i, spin, walk), s, w, o in zip(plans, results[0::3], results[1::3], results[2::3], strict=True):
        episodes.append(Episode(f"spin-{i:03d}", "spin", s.caption, s.frames, s.cameras, spin))
        episodes.append(
            Episode(f"walk-{i:03d}", "walk", w.caption, w.frames, w.cameras, walk, o.frames, o.cameras)
        )
    root.mkdir(parents=True, exist_ok=True)
    store.write_bytes(pickle.dumps(episodes))
    mark.write_text(json.dumps(settings))
    return episodes
