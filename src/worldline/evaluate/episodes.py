"""Held-out episodes with their truth: what the simulator shows when it is driven by the same controls, and by others.

Two suites on maps that no training set may use: `spin` (turning on the spot by a pseudo-random command, for control
response) and `walk` (the data's own policy, for fidelity; each with a replay under other controls from the same start).
On disk: <root>/<fingerprint>/<id>.safetensors (frames, cameras, controls) with <id>.json (caption, keys) beside it; an
episode whose .json is there is finished and never rendered again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from worldline.schema import CameraPath, Controls, WorldlineError

if TYPE_CHECKING:
    from worldline.data.replay import Replay
    from worldline.data.sources.doomrooms.engine import Spawn

FIRST_MAP = 950_000  # training maps end below 900 000, the dataset's own held-out maps below this
FORMAT = 4
CONTACT_LIMIT = 0.3  # a walk that leans on walls for longer than this share is drawn again
DRAWS = 16
SOON = (
    12  # frames within which a walk must have changed the view, so that a repeated start is no fair guess at one second
)

Suite = Literal["spin", "walk"]


@dataclass(frozen=True)
class Episode:
    """frames: uint8 [F, H, W, 3], frame 0 the given start; cameras: F true poses in game units; controls: F - 1
    transitions; `other_*`: the same start under other controls (walk suite)."""

    id: str
    suite: str
    caption: str
    frames: np.ndarray
    cameras: CameraPath
    controls: Controls
    other_frames: np.ndarray | None = None
    other_cameras: CameraPath | None = None


@dataclass(frozen=True)
class _Plan:
    """What decides every byte of a set of episodes."""

    count: int
    seed: int
    spin_frames: int
    walk_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.count < 1 or min(self.spin_frames, self.walk_frames) < 1:
            raise WorldlineError(
                f"{self.count} episodes of {self.spin_frames} and {self.walk_frames} frames; expected at least 1 of each"
            )

    def fingerprint(self) -> str:
        """12 hex digits; the number of episodes is left out, so that more can be added to a folder."""
        fixed = {k: v for k, v in asdict(self).items() if k != "count"}
        return hashlib.sha256(json.dumps({**fixed, "format": FORMAT}, sort_keys=True).encode()).hexdigest()[:12]


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


def build_episodes(
    root: str | Path,
    count: int,
    seed: int = 0,
    *,
    spin_frames: int = 96,
    walk_frames: int = 44,
    height: int = 64,
    width: int = 96,
) -> list[Episode]:
    """`count` episodes of either suite, rendered where they are not under `root` yet; the same settings give the same
    bytes. spin_frames, walk_frames: transitions, so an episode has one frame more.

    Raises WorldlineError on impossible settings, or where something must be rendered and there is no game engine.
    """
    plan = _Plan(count, seed, spin_frames, walk_frames, height, width)
    folder = Path(root) / plan.fingerprint()
    folder.mkdir(parents=True, exist_ok=True)
    episodes = []
    for i in range(count):
        names = [f"spin-{i:03d}", f"walk-{i:03d}"]
        if not all((folder / f"{name}.json").is_file() for name in names):
            for episode in _render(plan, i, names):
                _write(folder, episode)
        episodes += [_read(folder, name) for name in names]
    return episodes


def _render(plan: _Plan, index: int, names: list[str]) -> tuple[Episode, Episode]:
    from worldline.data.replay import Replay

    rng = np.random.default_rng([plan.seed, index, 17])
    with Replay(FIRST_MAP + plan.seed * 1000 + index, height=plan.height, width=plan.width) as replay:
        spot, controls = replay.random_spawn(rng), spin_controls(plan.spin_frames, rng)
        frames, cameras = replay.play(spot, controls)
        spin = Episode(names[0], "spin", replay.level.caption(spot.x, spot.y), frames, cameras, controls)
        spot, controls, frames, cameras = _free_walk(replay, plan.walk_frames, rng)
        caption = replay.level.caption(spot.x, spot.y)
        other = replay.play(spot, other_controls(controls))
        return spin, Episode(names[1], "walk", caption, frames, cameras, controls, *other)


def _free_walk(replay: Replay, frames: int, rng: np.random.Generator) -> tuple[Spawn, Controls, np.ndarray, CameraPath]:
    """A walk of the data's policy that soon moves and mostly gets where it wants; the best of DRAWS where none does."""
    from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME
    from worldline.data.sources.doomrooms.policy import random_walk, wall_contact

    best, least = None, np.inf
    for _ in range(DRAWS):
        spot, controls = replay.random_spawn(rng), random_walk(frames, rng)
        shown, cameras = replay.play(spot, controls)
        contact = float(wall_contact(controls, cameras.c2w, WALK_UNITS_PER_FRAME).mean())
        fault = contact if _moved(cameras[:SOON]) else contact + 1
        if fault < least:
            best, least = (spot, controls, shown, cameras), fault
        if fault <= CONTACT_LIMIT:
            break
    assert best is not None
    return best


def _moved(path: CameraPath) -> bool:
    """Whether a path ends 10 degrees or half a map cell from where it starts."""
    forward, step = path.c2w[[0, -1], :3, 2], path.c2w[-1, :3, 3] - path.c2w[0, :3, 3]
    turned = np.rad2deg(np.arccos(np.clip(forward[0] @ forward[1], -1, 1)))
    return bool(turned > 10 or np.linalg.norm(step) > 32)


def _write(folder: Path, episode: Episode) -> None:
    from safetensors.numpy import save_file

    arrays = {
        "frames": episode.frames,
        "c2w": episode.cameras.c2w,
        "K": episode.cameras.K,
        "move": episode.controls.move,
        "look": episode.controls.look,
    }
    if episode.other_frames is not None and episode.other_cameras is not None:
        arrays |= {"other_frames": episode.other_frames, "other_c2w": episode.other_cameras.c2w}
    described = {
        "id": episode.id,
        "suite": episode.suite,
        "caption": episode.caption,
        "keys": ["+".join(row) for row in episode.controls.keys],
    }
    tensors, text = folder / f"{episode.id}.safetensors", folder / f"{episode.id}.json"
    tmp = tensors.with_suffix(".tmp")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp)
    os.replace(tmp, tensors)
    tmp.write_text(json.dumps(described, indent=2) + "\n")
    os.replace(tmp, text)  # last: it says that the episode is whole


def _read(folder: Path, name: str) -> Episode:
    from safetensors.numpy import load_file

    described: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    a = load_file(folder / f"{name}.safetensors")
    keys = tuple(tuple(row.split("+")) if row else () for row in described["keys"])
    other = CameraPath(a["other_c2w"], a["K"]) if "other_c2w" in a else None
    return Episode(
        name,
        described["suite"],
        described["caption"],
        a["frames"],
        CameraPath(a["c2w"], a["K"]),
        Controls(a["move"], a["look"], keys),
        a.get("other_frames"),
        other,
    )
