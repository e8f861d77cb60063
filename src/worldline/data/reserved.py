"""Maps kept for evaluation: whatever is trained on them would be judged by what it has seen."""

from __future__ import annotations

from collections.abc import Iterable

from worldline.schema import WorldlineError

FIRST_EVALUATION_MAP = 950_000  # of the doomrooms source; all from here on


class ReservedMapError(WorldlineError):
    """Training was given maps of the evaluation."""


def refuse_reserved(map_seeds: Iterable[int], what: str) -> None:
    """Raises ReservedMapError where any map seed is one of the evaluation's. what: says whose they are."""
    taken = sorted({int(m) for m in map_seeds if int(m) >= FIRST_EVALUATION_MAP})
    if taken:
        raise ReservedMapError(
            f"{what} has maps {taken[:3]}{' ..' if len(taken) > 3 else ''}, which are kept for evaluation; use map seeds "
            f"below {FIRST_EVALUATION_MAP}"
        )
