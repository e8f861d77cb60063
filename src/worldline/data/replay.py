"""The data's own engine as a simulator: any start, any controls, the frames and poses that truly follow.

Evaluation compares a model with it: the same start under the same controls (what should be seen) or under others (what
should not). Replaying a clip's own controls gives the clip's own bytes.
"""

from __future__ import annotations

import tempfile
from types import TracebackType

import numpy as np

from worldline.data.dataset import Clip
from worldline.data.sources.doomrooms.engine import DoomRooms, Spawn
from worldline.data.sources.doomrooms.maps import Map
from worldline.schema import CameraPath, Controls, WorldlineError


class Replay:
    """One map, ready to walk. A context manager: the engine ends with it.

    height, width: pixels of the frames, as the dataset's. Raises WorldlineError where the game engine is not installed.
    """

    def __init__(self, map_seed: int, *, height: int = 64, width: int = 96) -> None:
        self.map_seed = map_seed
        self._scratch = tempfile.TemporaryDirectory(prefix="worldline-replay-", ignore_cleanup_errors=True)
        try:
            self._engine = DoomRooms(map_seed, self._scratch.name, height, width)
        except ModuleNotFoundError as error:
            self._scratch.cleanup()
            raise WorldlineError(f"replaying needs the game engine ({error}); pip install vizdoom") from error
        except BaseException:
            self._scratch.cleanup()
            raise

    @classmethod
    def of(cls, clip: Clip) -> Replay:
        """The map a clip was recorded on, at the clip's size."""
        height, width = clip.frames.shape[1:3]
        return cls(clip.map_seed, height=height, width=width)

    @property
    def level(self) -> Map:
        """The map: rooms, walls, captions."""
        return self._engine.level

    def random_spawn(self, rng: np.random.Generator) -> Spawn:
        """A place with room around it, looking anywhere."""
        return self._engine.random_spawn(rng)

    def play(self, start: Clip | Spawn, controls: Controls | None = None) -> tuple[np.ndarray, CameraPath]:
        """Walk from `start`: frames uint8 [F + 1, H, W, 3] and their cameras in game units, for F rows of controls; action
        t acts between frames t and t + 1. Frame 0 of a start from a clip is the clip's frame 0; without `controls` the
        clip's own are replayed.

        Raises WorldlineError on a clip of another map, on controls no walker has (up, pitch, roll), or on a start from a
        bare spawn without controls.
        """
        if isinstance(start, Clip):
            if start.map_seed != self.map_seed:
                raise WorldlineError(
                    f"clip {start.id} is of map {start.map_seed}, not {self.map_seed}; use Replay.of(clip)"
                )
            controls = start.controls[: len(start.frames) - 1] if controls is None else controls
            start = Spawn(*start.spawn)
        if controls is None:
            raise WorldlineError("a spawn has no controls of its own; pass the controls to play")
        if controls.move[:, 1].any() or controls.look[:, 1:].any():
            raise WorldlineError(
                "controls ask for up, pitch or roll; expected right, forward and yaw alone, set the rest to 0"
            )
        return self._engine.play(start, controls)

    def begin(self, start: Spawn) -> np.ndarray:
        """Stand at `start`: the first frame uint8 [H, W, 3], for `go` to continue from."""
        self._engine.start(start)
        return self._engine.observe()[0]

    def go(self, controls: Controls) -> np.ndarray:
        """Walk on from where `begin` or the last `go` ended: frames uint8 [F, H, W, 3] after each of F rows. Pieces of a
        track give the frames of the whole."""
        seen = []
        for move, look in zip(controls.move, controls.look, strict=True):
            self._engine.act(float(move[0]), float(move[2]), float(look[0]))
            seen.append(self._engine.observe()[0])
        return np.stack(seen)

    def close(self) -> None:
        """End the engine and remove its files. Doing so twice is harmless."""
        self._engine.close()
        self._scratch.cleanup()

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
