"""A short preset for tests, and the simulator as a model with a planted delay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worldline.evaluate import suites
from worldline.evaluate.adapter import ModelInfo
from worldline.evaluate.runner import Plan
from worldline.evaluate.truth import Truth
from worldline.schema import Controls


def tiny_plan(monkeypatch: pytest.MonkeyPatch, out: Path, truth: Path) -> Plan:
    """Three short episodes: turning, a pan and return, a walk."""
    entries = [
        suites.Entry("S2", "yaw", 1, frames=40),
        suites.Entry("S3", "pan-30", 1),
        suites.Entry("S7", "roam", 1, frames=36),
    ]
    monkeypatch.setitem(suites.PRESETS, "tiny", entries)
    return Plan(preset="tiny", out=out, truth=truth, workers=0)


class Faulty:
    """Shows the truth it is told to expect, `delay` frames late."""

    def __init__(self, delay: int = 0, frames_per_step: int = 4) -> None:
        self.delay, self.frames_per_step, self.resets = delay, frames_per_step, 0

    def info(self) -> ModelInfo:
        return ModelInfo(
            name="faulty",
            fps=16,
            height=64,
            width=96,
            frames_per_step=self.frames_per_step,
            weights=f"delay-{self.delay}",
        )

    def expect(self, truth: Truth) -> None:
        self.frames = truth.frames

    def reset(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        self.at, self.resets = 0, self.resets + 1
        return self.frames[0]

    def step(self, controls: Controls) -> np.ndarray:
        wanted = np.arange(self.at + 1, self.at + len(controls) + 1) - self.delay
        self.at += len(controls)
        return self.frames[wanted.clip(0, len(self.frames) - 1)]
