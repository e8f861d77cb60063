"""A balanced walk: hold segments drawn uniformly over action classes, not over what people tend to do."""

from __future__ import annotations

import numpy as np

from worldline.schema import Controls

# class -> (probability, right, forward, yaw sign, keys)
CLASSES: dict[str, tuple[float, float, float, int, tuple[str, ...]]] = {
    "forward": (0.18, 0, 1, 0, ("w",)),
    "forward-left": (0.11, 0, 1, -1, ("w", "left")),
    "forward-right": (0.11, 0, 1, 1, ("w", "right")),
    "left": (0.15, 0, 0, -1, ("left",)),
    "right": (0.15, 0, 0, 1, ("right",)),
    "strafe-left": (0.05, -1, 0, 0, ("a",)),
    "strafe-right": (0.05, 1, 0, 0, ("d",)),
    "back": (0.10, 0, -1, 0, ("s",)),
    "still": (0.10, 0, 0, 0, ()),
}
YAW_RATES = (2.0, 2.0, 2.0, 1.0, 3.0)  # degrees a pixel frame


def random_walk(frames: int, rng: np.random.Generator, hold: tuple[int, int] = (6, 24)) -> Controls:
    """Controls of `frames` transitions, made of held segments."""
    names = list(CLASSES)
    weights = np.array([CLASSES[n][0] for n in names])
    parts, length = [], 0
    while length < frames:
        _, right, forward, yaw, keys = CLASSES[names[int(rng.choice(len(names), p=weights / weights.sum()))]]
        n = int(rng.integers(hold[0], hold[1] + 1))
        rate = yaw * float(rng.choice(YAW_RATES))
        parts.append(Controls(np.tile((right, 0, forward), (n, 1)), np.tile((rate, 0, 0), (n, 1)), (keys,) * n))
        length += n
    return Controls.concat(parts)[:frames]


def wall_contact(controls: Controls, c2w: np.ndarray, units_per_frame: float) -> np.ndarray:
    """bool [F]: walking was asked for five frames running, and less than a quarter of it happened."""
    asked = np.abs(controls.move).max(axis=1) > 0
    steady = np.convolve(asked, np.ones(5), mode="full")[: len(asked)] >= 5
    speed = np.linalg.norm(np.diff(c2w[:, :2, 3], axis=0), axis=1)
    return steady & (speed < 0.25 * units_per_frame)
