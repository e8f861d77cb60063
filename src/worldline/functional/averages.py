"""Moving averages of weights, and the precision they need."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from worldline.schema import WorldlineError

COARSE = 0.9  # decay above which an average of less than fp32 stands still


def check_precision(averages: Iterable[Tensor], decay: float, what: str) -> None:
    """Raise WorldlineError where averages would be too coarse to move. A step of (1 - decay) times the difference that is
    below half a unit of the last place is rounded away: in bf16 at decay 0.999 any difference of less than twice the weight
    itself."""
    dtypes = {x.dtype for x in averages if x.dtype.itemsize < torch.float32.itemsize}
    if dtypes and decay > COARSE:
        found = ", ".join(sorted(str(t).removeprefix("torch.") for t in dtypes))
        raise WorldlineError(
            f"{what}: an average in {found} with decay {decay} would stand still, its steps are rounded away; expected fp32 "
            f"weights (model.float(); compute in bf16 by precision: bf16), or a decay of at most {COARSE}"
        )
