"""What a player does in an episode: control tracks made of held keys, and walks that meet no wall.

Every script is one that the simulator carries out exactly as asked: the way asked for is the way walked, so that control
can be judged without knowing where walls are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worldline.control.camera import CameraIntegrator
from worldline.schema import Controls, WorldlineError

if TYPE_CHECKING:
    from worldline.data.sources.doomrooms.engine import Spawn
    from worldline.data.sources.doomrooms.maps import Map

TURN = 2.0  # degrees a frame of a held turn key
FAST = 3.0  # the fastest turn of training
CLEARANCE = 24.0  # map units kept from walls; the walker's own radius is 16
PRIMITIVES = {
    "forward": (0, 1, 0), "back": (0, -1, 0), "left": (-1, 0, 0), "right": (1, 0, 0),
    "turn-left": (0, 0, -1), "turn-right": (0, 0, 1), "forward-left": (0, 1, -1), "forward-right": (0, 1, 1),
}  # fmt: skip # (right, forward, yaw sign)


def hold(frames: int, right: float = 0, forward: float = 0, yaw: float = 0) -> Controls:
    """One held action; yaw in degrees a frame."""
    keys = tuple(
        name
        for name, held in (
            ("w", forward > 0), ("a", right < 0), ("s", forward < 0), ("d", right > 0),
            ("left", yaw < 0), ("right", yaw > 0),
        )
        if held
    )  # fmt: skip
    return Controls(np.tile((right, 0, forward), (frames, 1)), np.tile((yaw, 0, 0), (frames, 1)), (keys,) * frames)


def single(name: str, frames: int = 32) -> Controls:
    """One primitive held, after four still frames."""
    right, forward, turn = PRIMITIVES[name]
    return Controls.concat([Controls.still(4), hold(frames - 4, right, forward, TURN * turn)])


def random_holds(frames: int, rng: np.random.Generator, axes: tuple[str, ...], rate: float = TURN) -> Controls:
    """Every axis of `axes` (yaw, forward, strafe) on its own in {-1, 0, 1}, held 4 to 13 frames."""
    tracks = {}
    for axis in ("yaw", "forward", "strafe"):
        track: list[float] = []
        while len(track) < frames:
            sign = float(rng.integers(-1, 2)) if axis in axes else 0.0
            track += [sign] * int(rng.integers(4, 14))
        tracks[axis] = track[:frames]
    rows = zip(tracks["strafe"], tracks["forward"], tracks["yaw"], strict=True)
    return Controls.concat([hold(1, right, forward, rate * turn) for right, forward, turn in rows])


def pan_return(degrees: float) -> tuple[Controls, dict[str, list[int]]]:
    """Turn left by `degrees` and back, then stand; marks `far` and `back`."""
    rate = FAST if degrees > 90 else TURN
    n = round(degrees / rate)
    controls = Controls.concat([hold(n, yaw=-rate), Controls.still(4), hold(n, yaw=rate), Controls.still(8)])
    return controls, {"far": [n + 2], "back": [2 * n + 4 + 4]}


def spin(turns: int) -> tuple[Controls, dict[str, list[int]]]:
    """Whole turns to the right, then stand; marks `turn`: the frame that ends each."""
    n = round(360 / FAST)
    return Controls.concat([hold(n * turns, yaw=FAST), Controls.still(8)]), {
        "turn": [n * (i + 1) for i in range(turns)]
    }


def square() -> tuple[Controls, dict[str, list[int]]]:
    """Ahead, a quarter turn, four times; marks `far` (the opposite corner) and `back`."""
    side, turn = 18, 30
    parts = [part for _ in range(4) for part in (hold(side, forward=1), hold(turn, yaw=FAST))]
    corner = 2 * (side + turn) - turn // 2
    return Controls.concat([*parts, Controls.still(8)]), {"far": [corner], "back": [4 * (side + turn) + 4]}


def alternate(kind: str, cycles: int = 20, half: int = 8) -> tuple[Controls, dict[str, list[int]]]:
    """`forward`: w and s in turn; `yaw`: left and right in turn; marks `cycle`: the frame that ends each."""
    one, other = (hold(half, forward=1), hold(half, forward=-1)) if kind == "forward" else (
        hold(half, yaw=-TURN), hold(half, yaw=TURN)
    )  # fmt: skip
    return Controls.concat([one, other] * cycles), {"cycle": [2 * half * (i + 1) for i in range(cycles)]}


def other_than(controls: Controls) -> Controls:
    """The opposite of everything, and turning where nothing was asked: a player who did something else."""
    look, move = -controls.look, -controls.move
    still = (np.abs(look).max(axis=1) == 0) & (np.abs(move).max(axis=1) == 0)
    look[still, 0] = TURN
    return Controls(move, look)


def scaled(controls: Controls, gain: float) -> Controls:
    """All motion times `gain`."""
    return Controls(gain * controls.move, gain * controls.look)


# -- places ------------------------------------------------------------------------------------------------------------


def walked(spawn: Spawn, controls: Controls) -> np.ndarray:
    """Map positions [F, 2] after each control where no wall is met."""
    from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME

    camera = CameraIntegrator(np.array([0.5, 0.5, 0.5, 0.5]), 1.0, WALK_UNITS_PER_FRAME)
    return _on_map(spawn, camera.extend(controls).c2w[:, :3, 3])


def _on_map(spawn: Spawn, position: np.ndarray) -> np.ndarray:
    a = np.deg2rad(spawn.angle)
    ahead, right = np.array([np.cos(a), np.sin(a)]), np.array([np.sin(a), -np.cos(a)])
    return np.array([spawn.x, spawn.y]) + position[:, 2:3] * ahead + position[:, 0:1] * right


def is_free(level: Map, positions: np.ndarray, clearance: float = CLEARANCE) -> bool:
    """Whether no position [F, 2] comes nearer than `clearance` to a solid cell (as a square)."""
    from worldline.data.sources.doomrooms.maps import CELL

    cells = level.cells
    for dx in (-clearance, 0.0, clearance):
        for dy in (-clearance, 0.0, clearance):
            x, y = ((positions + np.array([dx, dy])) // CELL).astype(int).T
            inside = (x >= 0) & (y >= 0) & (x < cells.shape[1]) & (y < cells.shape[0])
            if not inside.all() or (cells[y, x] < 0).any():
                return False
    return True


def free_spawn(level: Map, rng: np.random.Generator, controls: list[Controls], tries: int = 400) -> Spawn:
    """A place from which all of `controls` meet no wall. Raises WorldlineError where `tries` places are not enough."""
    for _ in range(tries):
        spawn = random_spawn(level, rng)
        if all(is_free(level, walked(spawn, c)) for c in controls):
            return spawn
    raise WorldlineError(f"map {level.seed} has no room for this script in {tries} places; use another map seed")


def random_spawn(level: Map, rng: np.random.Generator) -> Spawn:
    """The centre of a cell with free cells around it, looking anywhere in whole degrees."""
    from worldline.data.sources.doomrooms.engine import Spawn
    from worldline.data.sources.doomrooms.maps import CELL, largest_component

    free = largest_component(level.cells)
    roomy = free[1:-1, 1:-1].copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            roomy &= free[1 + dy : free.shape[0] - 1 + dy, 1 + dx : free.shape[1] - 1 + dx]
    places = np.argwhere(roomy) + 1
    y, x = places[int(rng.integers(len(places)))]
    return Spawn(int(x * CELL + CELL // 2), int(y * CELL + CELL // 2), float(rng.integers(0, 360)))


def free_roam(
    level: Map, spawn: Spawn, frames: int, rng: np.random.Generator, holds: tuple[int, int] = (6, 20)
) -> Controls:
    """A walk of held keys that turns away before it meets a wall: a segment that would is drawn again."""
    from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME
    from worldline.data.sources.doomrooms.policy import CLASSES, YAW_RATES

    camera = CameraIntegrator(np.array([0.5, 0.5, 0.5, 0.5]), 1.0, WALK_UNITS_PER_FRAME)
    glide = Controls.still(6)  # velocity outlives the key: what it would do is part of a segment's way
    names, weights = list(CLASSES), np.array([CLASSES[n][0] for n in CLASSES])
    parts, length = [], 0
    while length < frames:
        n = int(rng.integers(holds[0], holds[1] + 1))
        for attempt in range(12):
            _, right, forward, yaw, _ = CLASSES[names[int(rng.choice(len(names), p=weights / weights.sum()))]]
            rate = yaw * float(rng.choice(YAW_RATES))
            if attempt == 11:
                right, forward, rate = 0, 0, FAST
            part, trial = hold(n, right, forward, rate), camera.fork()
            if is_free(level, _on_map(spawn, trial.extend(Controls.concat([part, glide])).c2w[:, :3, 3])):
                break
        camera.extend(part)
        parts.append(part)
        length += n
    return Controls.concat(parts)[:frames]


def facing_wall(level: Map, rng: np.random.Generator, tries: int = 400) -> Spawn:
    """A place that looks straight at a wall two to three paces away."""
    from worldline.data.sources.doomrooms.engine import Spawn
    from worldline.data.sources.doomrooms.maps import CELL

    for _ in range(tries):
        spawn = random_spawn(level, rng)
        angle = float(rng.choice((0, 90, 180, 270)))
        ahead = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
        near, free, solid = (np.array([[spawn.x, spawn.y]]) + d * CELL * ahead for d in (0.9, 1.0, 1.5))
        if is_free(level, free, 20.0) and not is_free(level, solid, 20.0):
            return Spawn(round(float(near[0, 0])), round(float(near[0, 1])), angle)
    raise WorldlineError(f"map {level.seed} has no wall to face in {tries} places; use another map seed")
