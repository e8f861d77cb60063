"""A world as a Gymnasium environment: an action walks one chunk. Needs the extra `gym`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from worldline.schema import Controls, WorldlineError
from worldline.stream.engine import Engine
from worldline.stream.session import Session


class WorldEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observation: the last frame of a chunk, uint8 [H, W, 3]. Action: [right, forward, turn right] in [-1, 1], shares of full
    walking speed and of the fastest turn, held for a chunk. `info["frames"]` has all frames of the chunk.

    reward: of an observation (default 0); done: whether an observation ends the episode (default never); horizon: chunks
    after which it is truncated. `reset(options={"start": name, "prompt": text})` chooses where. The seed of `reset` is the
    world's: the same seed and actions give the same observations.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        start: str | None = None,
        reward: Callable[[np.ndarray], float] | None = None,
        done: Callable[[np.ndarray], bool] | None = None,
        horizon: int = 64,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise WorldlineError(f"render_mode {render_mode!r}; expected None or 'rgb_array'")
        if horizon < 1:
            raise WorldlineError(f"horizon {horizon}; expected at least 1 chunk")
        config = engine.config
        self.engine, self.start, self.horizon, self.render_mode = engine, start, horizon, render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": config.fps / engine.frames_per_chunk}
        self.observation_space = gymnasium.spaces.Box(0, 255, (config.height, config.width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self._reward, self._done = reward or (lambda _: 0.0), done or (lambda _: False)
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The walk of this episode. Raises WorldlineError before the first reset."""
        if self._session is None:
            raise WorldlineError("no episode has begun; call reset first")
        return self._session

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode; without a seed, that of the environment's own generator."""
        super().reset(seed=seed)
        said = options or {}
        if unknown := sorted(set(said) - {"start", "prompt"}):
            raise WorldlineError(f"options {unknown}; expected some of ['prompt', 'start']")
        world_seed = int(self.np_random.integers(2**31))
        self._session = self.engine.session(said.get("start", self.start), said.get("prompt"), world_seed)
        return self._session.first_frame.copy(), {"seed": world_seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Walk a chunk under an action, which is held to its bounds."""
        frames = self.session.step(controls_of(self.engine, action))
        seen = frames[-1].copy()
        chunks = (self.session.frame_index - 1) // self.engine.frames_per_chunk
        return seen, float(self._reward(seen)), bool(self._done(seen)), chunks >= self.horizon, {"frames": frames}

    def render(self) -> np.ndarray | None:
        """The last frame, where render_mode is rgb_array."""
        return self.session.last_frame.copy() if self.render_mode == "rgb_array" else None


def controls_of(engine: Engine, action: np.ndarray) -> Controls:
    """[right, forward, turn right] in [-1, 1] -> the control rows of a chunk. Raises WorldlineError on another shape or a value
    that is not finite."""
    given = np.asarray(action, dtype=np.float32)
    if given.shape != (3,):
        raise WorldlineError(f"action {given.shape}: expected [right, forward, turn right]")
    right, forward, turn = np.clip(given, -1.0, 1.0)
    n, fastest = engine.frames_per_chunk, engine.config.max_turn_deg_per_frame
    return Controls(np.tile((right, 0.0, forward), (n, 1)), np.tile((turn * fastest, 0.0, 0.0), (n, 1)))
