"""`rollout.history`: stages train with what a chunk recalls, and the exported world recalls it."""

from __future__ import annotations

import pytest

from tests.recipes.test_pipeline import go
from worldline.methods import teacher_forcing
from worldline.recipes.builder import RecipeError
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import _rollout
from worldline.rollout.history import CameraMemory
from worldline.rollout.memory import Memory
from worldline.schema import Controls
from worldline.stream.engine import Engine
from worldline.stream.world import WorldConfig

HISTORY = "rollout.history={policy: camera_memory, slots: 1, far: 1.0, points: 32}"
SHORT = ("rollout.window=2", "stages.ode=null", "stages.cd=null", "stages.dmd.init=ar")


def test_a_recipe_says_what_is_recalled():
    plain, with_memory = load_recipe("nano"), load_recipe("nano", [HISTORY])
    assert plain.rollout.memory() is None
    assert "history" not in _rollout(plain), "finished runs keep their hashes"
    assert with_memory.rollout.memory() == CameraMemory(slots=1, far=1.0, points=32)
    assert _rollout(with_memory)["history"]["slots"] == 1
    with pytest.raises(RecipeError, match="slots"):
        load_recipe("nano", ["rollout.history={slot: 2}"])
    with pytest.raises(RecipeError, match="camera_memory"):
        load_recipe("nano", ["rollout.history={policy: diary}"])


def test_stages_and_the_world_recall(smallest, tmp_path, monkeypatch):
    forced, rolled = [], []
    real_pass, real_recall = teacher_forcing.teacher_forced_velocity, Memory.recall

    def watched(*args, history=None, **kwargs):
        forced.append(history)
        return real_pass(*args, history=history, **kwargs)

    def recalling(self, *args, **kwargs):
        real_recall(self, *args, **kwargs)
        rolled.append(self.choice.held)

    monkeypatch.setattr(teacher_forcing, "teacher_forced_velocity", watched)
    monkeypatch.setattr(Memory, "recall", recalling)
    _, result = go(smallest, tmp_path / "run", *SHORT, HISTORY)
    wanted = CameraMemory(slots=1, far=1.0, points=32)
    assert set(forced) == {wanted}
    assert any(all(held) for held in rolled), "a rollout of dmd recalled something"
    assert WorldConfig.read(result.world).memory == wanted

    session = Engine.load(result.world, threads=1, warm=False).session(seed=1)
    for _ in range(4):
        session.step(Controls.still(4))
    session.commit()
    assert len(session._now.loop.memory.held[0]) == 1
