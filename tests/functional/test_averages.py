"""An average that rounds its steps away is refused, and would indeed stand still."""

from __future__ import annotations

import pytest
import torch

from worldline.functional.averages import check_precision
from worldline.schema import WorldlineError


def after(dtype: torch.dtype, decay: float) -> float:
    """Where an average of ones is after 1000 steps towards 1.01."""
    average, live = torch.ones(1, dtype=dtype), torch.full((1,), 1.01, dtype=dtype)
    for _ in range(1000):
        average.lerp_(live, 1 - decay)
    return float(average)


@pytest.mark.parametrize("decay", [0.999, 0.99])
def test_bf16_averages_stand_still_and_are_refused(decay):
    assert after(torch.bfloat16, decay) == 1.0
    assert after(torch.float32, decay) > 1.006
    with pytest.raises(WorldlineError, match=f"bfloat16 with decay {decay} would stand still"):
        check_precision([torch.ones(2), torch.ones(2, dtype=torch.bfloat16)], decay, "target")


def test_fp32_and_quick_averages_pass():
    check_precision([torch.ones(2), torch.ones(2, dtype=torch.float64)], 0.9999, "target")
    check_precision([torch.ones(2, dtype=torch.bfloat16)], 0.5, "target")
