"""Faults to plant in a perfect rollout: each spoils one thing and leaves the rest as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from worldline.evaluate.references import DELAY

if TYPE_CHECKING:
    from worldline.evaluate.truth import Truth

FLICKER = 0.15  # of the level, up and down from frame to frame
BOIL = 1.5  # pixels, drawn anew for every frame
BLUR = 3.0  # pixels at the end of a ramp
FADE = np.array([1.35, 0.9, 0.65])  # of red, green, blue at the end of a ramp
NOISE = 12.0  # grey levels
LEAK = 2  # frames by which a view moves too soon
Fault = Callable[["Truth", "Truth"], np.ndarray]  # the truth, another world's -> frames uint8 [F + 1, H, W, 3]


def _uint8(frames: np.ndarray) -> np.ndarray:
    return frames.round().clip(0, 255).astype(np.uint8)


def _late(truth: Truth, _: Truth) -> np.ndarray:
    return np.concatenate([np.repeat(truth.frames[:1], DELAY, axis=0), truth.frames])[: len(truth.frames)]


def _early(truth: Truth, _: Truth) -> np.ndarray:
    return np.concatenate([truth.frames[LEAK:], np.repeat(truth.frames[-1:], LEAK, axis=0)])


def _freeze(truth: Truth, _: Truth) -> np.ndarray:
    half = len(truth.frames) // 2
    return np.concatenate(
        [truth.frames[:half], np.repeat(truth.frames[half : half + 1], len(truth.frames) - half, axis=0)]
    )


def _flicker(truth: Truth, _: Truth) -> np.ndarray:
    sign = np.where(np.arange(len(truth.frames)) % 2, 1 + FLICKER, 1 - FLICKER)
    sign[0] = 1
    return _uint8(truth.frames * sign[:, None, None, None])


def _blur(truth: Truth, _: Truth) -> np.ndarray:
    import cv2

    ramp = np.linspace(0, BLUR, len(truth.frames))
    return np.stack([cv2.GaussianBlur(f, (0, 0), s) if s > 0.1 else f for f, s in zip(truth.frames, ramp, strict=True)])


def _boil(truth: Truth, _: Truth) -> np.ndarray:
    import cv2

    rng, (H, W) = np.random.default_rng(0), truth.frames.shape[1:3]
    x, y = np.meshgrid(np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32))
    out = [truth.frames[0]]
    for frame in truth.frames[1:]:
        dx, dy = (cv2.GaussianBlur(rng.normal(0, 1, (H, W)).astype(np.float32), (0, 0), 3) for _ in range(2))
        scale = BOIL / float(np.std(dx))
        out.append(cv2.remap(frame, x + dx * scale, y + dy * scale, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))
    return np.stack(out)


def _colour(truth: Truth, _: Truth) -> np.ndarray:
    ramp = 1 + np.linspace(0, 1, len(truth.frames))[:, None] * (FADE - 1)
    return _uint8(truth.frames * ramp[:, None, None])


def _noise(truth: Truth, _: Truth) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, NOISE, truth.frames.shape)
    noise[0] = 0
    return _uint8(truth.frames + noise)


def _wrong_world(truth: Truth, other: Truth) -> np.ndarray:
    """The start, then another place under its own controls."""
    F = len(truth.frames)
    return np.concatenate([truth.frames[:1], np.resize(other.frames, truth.frames.shape)[: F - 1]])


def _forgets(truth: Truth, other: Truth) -> np.ndarray:
    """Another place from the farthest view on, moving as it should."""
    marks = truth.case.marks
    at = marks["far"][0] if "far" in marks else len(truth.frames) // 2
    frames = truth.frames.copy()
    frames[at:] = np.roll(truth.frames[at:, :, ::-1, ::-1], 1, axis=3)
    return frames


def _blank(truth: Truth, _: Truth) -> np.ndarray:
    frames = truth.frames.copy()
    frames[len(frames) // 2] = 40
    return frames


def _strobe(truth: Truth, _: Truth) -> np.ndarray:
    frames = truth.frames.astype(np.float64)
    frames[1::4] *= 0.5
    frames[2::4] *= 0.5
    return _uint8(frames)


def _replayed(how: str) -> Fault:
    return lambda truth, _: truth.replays[how]


FAULTS: dict[str, Fault] = {
    "none": lambda truth, _: truth.frames,
    "delay 4": _late,
    "early 2": _early,
    "gain 0.5": _replayed("half"),
    "mirrored": _replayed("mirrored"),
    "frozen": lambda truth, _: np.repeat(truth.frames[:1], len(truth.frames), axis=0),
    "freezes half way": _freeze,
    "flicker 15 %": _flicker,
    "blur ramp": _blur,
    "boiling": _boil,
    "colour drift": _colour,
    "noise": _noise,
    "wrong world": _wrong_world,
    "forgets": _forgets,
    "one blank frame": _blank,
    "strobe": _strobe,
}
