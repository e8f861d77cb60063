"""ViZDoom, headless, one map a process: frames with the exact camera of each.

Camera model (software renderer, screen W x H, FOV 90): fx = (2/3) H, fy = 0.8 H in a world whose heights are drawn 1.2
times as tall; world z is multiplied by 1.2 here, which makes the pixels square (fx = fy). Pitch stays 0.
One pixel frame is two tics; the turn acts on the first alone, and is immediate. Walking has inertia: each tic adds
thrust and keeps 0.90625 of the velocity.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.data.sources.doomrooms.maps import CELL, Map, generate, largest_component, write_wad
from worldline.schema import CameraPath, Controls, WorldlineError

RENDER = (320, 200)  # W, H of the engine's screen
VIEW_W = 300  # central columns kept: 3:2
THRUST = 6  # engine units of full walking speed, of MOVE_*_DELTA
WALK_UNITS_PER_FRAME = 2 * (THRUST / 32) / (1 - 0.90625)  # terminal speed: 4 map units a pixel frame
Z_STRETCH = 1.2
WARM_TICS = 12  # a new level ignores input for its first tics


@dataclass(frozen=True)
class Spawn:
    """Where a clip starts: map units and the yaw in degrees, counter-clockwise from east."""

    x: int
    y: int
    angle: float


def intrinsics() -> np.ndarray:
    """Normalised fx, fy, cx, cy of the cropped view (with world z stretched)."""
    f = 2 / 3 * RENDER[1]
    return np.array([f / VIEW_W, f / RENDER[1], 0.5, 0.5])


def pose(x: float, y: float, z: float, angle_deg: float) -> np.ndarray:
    """c2w [4, 4], OpenCV axes, in a world x east, y north, z up (z stretched)."""
    a = np.deg2rad(angle_deg)
    c2w = np.eye(4)
    c2w[:3, 0] = (np.sin(a), -np.cos(a), 0)
    c2w[:3, 1] = (0, 0, -1)
    c2w[:3, 2] = (np.cos(a), np.sin(a), 0)
    c2w[:3, 3] = (x, y, z * Z_STRETCH)
    return c2w


class DoomRooms:
    """One map in one engine. The engine's working files go to `scratch`, which the caller owns."""

    def __init__(self, map_seed: int, scratch: str | Path, height: int = 64, width: int = 96) -> None:
        import vizdoom as vzd

        self.level: Map = generate(map_seed)
        self.height, self.width = height, width
        scratch = Path(scratch)
        wad = scratch / f"map{map_seed}.wad"
        write_wad(str(wad), self.level)
        game = vzd.DoomGame()
        game.set_doom_game_path(str(Path(vzd.__file__).parent / "freedoom2.wad"))
        game.set_doom_scenario_path(str(wad))
        game.set_doom_config_path(str(scratch / "engine.ini"))
        game.set_doom_map("MAP01")
        game.set_window_visible(False)
        game.set_screen_resolution(vzd.ScreenResolution.RES_320X200)
        game.set_screen_format(vzd.ScreenFormat.RGB24)
        for off in ("hud", "minimal_hud", "weapon", "crosshair", "decals", "particles", "messages", "corpses"):
            getattr(game, f"set_render_{off}")(False)
        game.set_render_screen_flashes(False)
        game.set_render_effects_sprites(False)
        game.set_available_buttons(
            [
                vzd.Button.MOVE_FORWARD_BACKWARD_DELTA,
                vzd.Button.MOVE_LEFT_RIGHT_DELTA,
                vzd.Button.TURN_LEFT_RIGHT_DELTA,
            ]
        )
        variable = vzd.GameVariable
        game.set_available_game_variables(
            [
                variable.CAMERA_POSITION_X,
                variable.CAMERA_POSITION_Y,
                variable.CAMERA_POSITION_Z,
                variable.CAMERA_ANGLE,
            ]
        )
        game.set_episode_timeout(0)
        game.set_mode(vzd.Mode.PLAYER)
        game.set_seed(map_seed & 0x7FFFFFFF)
        game.add_game_args("-nomonsters +movebob 0 +sv_cheats 1 +r_drawplayersprites 0 +r_fakecontrast 1")
        here = os.getcwd()
        os.chdir(scratch)
        try:
            game.init()
        except Exception as error:
            raise WorldlineError(f"the game engine did not start for map {map_seed}: {error}; see {scratch}") from error
        finally:
            os.chdir(here)
        self.game = game
        self._free = largest_component(self.level.cells)

    def close(self) -> None:
        """End the game, while its scratch folder is still there. Doing so twice is harmless."""
        self.game.close()

    def _state(self) -> Any:
        """The present screen and variables. Raises WorldlineError when the level is over, which no walk here can cause."""
        state = self.game.get_state()
        if state is None:
            raise WorldlineError(
                f"map {self.level.seed} ended in the middle of a walk; run again, or drop this map seed"
            )
        return state

    def random_spawn(self, rng: np.random.Generator) -> Spawn:
        """A place at the centre of a free cell whose neighbours are free too, looking anywhere."""
        Y, X = self._free.shape
        roomy = [
            (y, x)
            for y, x in np.argwhere(self._free)
            if self._free[max(y - 1, 0) : min(y + 2, Y), max(x - 1, 0) : min(x + 2, X)].all()
        ]
        y, x = roomy[int(rng.integers(len(roomy)))]
        jitter = rng.integers(-16, 17, size=2)
        return Spawn(int(x * CELL + 32 + jitter[0]), int(y * CELL + 32 + jitter[1]), float(rng.uniform(0, 360)))

    def start(self, spawn: Spawn) -> None:
        """A fresh level with the player standing still at `spawn`."""
        self.game.new_episode()
        self._tics(0, 0, 0, WARM_TICS)
        self.game.send_game_command(f"warp {spawn.x} {spawn.y}")
        self._tics(0, 0, 0, 2)
        angle = float(self._state().game_variables[3])
        self._tics(0, 0, (angle - spawn.angle + 180) % 360 - 180, 1)
        self._tics(0, 0, 0, 2)

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """(frame uint8 [height, width, 3], c2w float64 [4, 4]) of the present state."""
        import cv2

        state = self._state()
        left = (RENDER[0] - VIEW_W) // 2
        view = np.ascontiguousarray(state.screen_buffer[:, left : left + VIEW_W])
        frame = cv2.resize(view, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return frame, pose(*(float(v) for v in state.game_variables))

    def act(self, move_right: float, move_forward: float, yaw: float) -> None:
        """One pixel frame: two tics of walking, the turn (degrees, right positive) on the first."""
        self._tics(THRUST * move_forward, THRUST * move_right, yaw, 1)
        self._tics(THRUST * move_forward, THRUST * move_right, 0, 1)

    def _tics(self, forward: float, right: float, turn: float, tics: int) -> None:
        for i in range(tics):
            self.game.set_action([forward, right, turn if i == 0 else 0])
            self.game.advance_action(1, True)

    def play(self, spawn: Spawn, controls: Controls) -> tuple[np.ndarray, CameraPath]:
        """Replay controls from a spawn: frames uint8 [F + 1, H, W, 3] and their cameras; action t acts between frames t
        and t + 1. The same spawn and controls give the same bytes."""
        self.start(spawn)
        seen = [self.observe()]
        for move, look in zip(controls.move, controls.look, strict=True):
            self.act(float(move[0]), float(move[2]), float(look[0]))
            seen.append(self.observe())
        frames, c2w = zip(*seen, strict=True)
        return np.stack(frames), CameraPath(np.stack(c2w), intrinsics())
