"""Recomputing all of a block, or all but its attention: the same losses and gradients."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.train.jobs import Clips, alone, method
from tests.train.test_parallel import same
from torch.utils._python_dispatch import TorchDispatchMode

from worldline.methods.base import Rng
from worldline.models.frugal import recompute_blocks
from worldline.train.parallel import LayoutConfig

KEEPS = ("nothing", "attention")


class Operators(TorchDispatchMode):
    """How often every operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Attention by its fused kernel though there are gradients, as on an accelerator."""
    monkeypatch.setattr("worldline.nn.attention.SMALL", 0)


@pytest.mark.parametrize("kind", ["teacher_forcing", "dmd"])
def test_losses_and_gradients_are_those_of_kept_activations(kind):
    cases = [(kind, {"steps": 1})]
    cases += [(kind, {"steps": 1, "recompute": True, "layout": LayoutConfig(recompute_keeps=k)}) for k in KEEPS]
    plain, *others = alone(cases)
    for keeps, other in zip(KEEPS, others, strict=True):
        same(plain, [other], keeps)


def test_attention_that_is_kept_runs_once():
    found = {}
    for keeps in KEEPS:
        built = method("finetune")
        recompute_blocks(built.roles["model"], keeps)
        loss = built.phases[0].loss(Clips().batch(0, 0, 1), Rng(0, 0))["loss"]
        with Operators() as operators:
            loss.backward()
        found[keeps] = operators.ran
    attention = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    # Two blocks, each with attention over frames and over the prompt.
    assert found["nothing"][attention] == 4
    assert found["attention"][attention] == 0
    assert found["attention"]["aten.addmm.default"] == found["nothing"]["aten.addmm.default"] > 0, "all else runs again"
