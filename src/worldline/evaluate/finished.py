"""A finished evaluation read back from its folder: its plan, and the clips that lie there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.runner import Plan, clip_path, shown
from worldline.evaluate.suites import Case
from worldline.evaluate.truth import Truth, truth_of
from worldline.schema import WorldlineError


@dataclass(frozen=True)
class Finished:
    """manifest: as the runner wrote it; cases: those whose clips are there, in the preset's order."""

    plan: Plan
    manifest: dict[str, Any]
    cases: list[Case]

    @property
    def name(self) -> str:
        """The model's."""
        return str(self.manifest["model"]["name"])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return int(self.manifest["model"]["height"]), int(self.manifest["model"]["width"])

    def frames(self, case: Case) -> np.ndarray:
        """The model's, uint8 [F + 1, H, W, 3]."""
        return shown(self.plan.out, case)

    def truths(self) -> Iterator[tuple[Case, Truth]]:
        """Every case with what the simulator shows; rendered again where the truths are gone."""
        for case in self.cases:
            yield case, truth_of(case, self.plan.truth, *self.size)


def read_run(out: str | Path, truth: Path | None = None) -> Finished:
    """truth: where rendered truths lie, by default where the evaluation kept them. Raises WorldlineError where `out` is no
    evaluation or holds no clips."""
    out = Path(out)
    path = out / "manifest.json"
    if not path.is_file():
        raise WorldlineError(
            f"{out} has no manifest.json; expected the directory of an evaluation (worldline evaluate --out)"
        )
    manifest = json.loads(path.read_text())
    plan = Plan(
        preset=manifest["preset"],
        suites=tuple(manifest["suites"]),
        out=out,
        truth=truth or Path(manifest["truth"]),
        episodes=int(manifest.get("episodes", 0)),
        frames=int(manifest.get("frames", 0)),
    )
    cases = [case for case in plan.cases() if clip_path(out, case).is_file()]
    if not cases:
        raise WorldlineError(
            f"{out} holds no clips of preset {plan.preset}; run worldline evaluate with --out {out} first"
        )
    return Finished(plan, manifest, cases)
