"""Tier 2: figures of learned networks. No weights are shipped; each figure runs with files that a user names
(`--tier2 lpips=DIR,clip=DIR`), and says what it needs where none were named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.schema import WorldlineError

if TYPE_CHECKING:
    from worldline.evaluate.runner import Plan

NEEDS = {  # what to name, and what it must hold
    "lpips": "lpips=DIR with torchvision's AlexNet (alexnet*.pth) and the linear weights of lpips 0.1 (alex.pth)",
    "fvd": "fvd=FILE, I3D of Kinetics-400 as TorchScript (i3d_torchscript.pt), and 256 windows of 16 frames",
    "jedi": "jedi=FILE, V-JEPA with its pooler as TorchScript, [B, 3, 16, 224, 224] to [B, D]",
    "clip": "clip=DIR, a CLIP model with its tokenizer as transformers saves it",
    "aesthetic": "aesthetic=FILE, the linear weights of the LAION predictor (sa_0_4_*_linear.pth), and clip=DIR to go with them",
    "vbench": "vbench=FILE, the `vbench` command of an environment that has VBench and its backbones",
}
ROWS = ("model", "replay", "frozen", "other-actions")


@dataclass(frozen=True)
class Clip:
    """One episode for a learned figure. row: name in ROWS -> uint8 [F + 1, H, W, 3]."""

    case: str
    suite: str
    caption: str
    row: Callable[[str], np.ndarray]


UNITS = {  # of the figures: unit, better, digits, what it is
    "lpips_1s": ("", "lower", 3, "LPIPS (AlexNet, 0.1) to the replay, quarter second before 1 s, walks"),
    "lpips_4s": ("", "lower", 3, "LPIPS (AlexNet, 0.1) to the replay, quarter second before 4 s, walks"),
    "fvd": ("", "lower", 1, "Frechet distance of I3D features of 16-frame windows to the replay's"),
    "jedi": ("", "lower", 3, "100 x squared MMD of V-JEPA features of 16-frame windows to the replay's"),
    "clip_text": ("", "higher", 3, "cosine of CLIP features of frames and prompt"),
    "clip_truth": ("", "higher", 3, "cosine of CLIP features of frames and the replay's"),
    "clip_steady": ("", "higher", 3, "cosine of CLIP features of frames a quarter second apart"),
    "aesthetic": ("", "higher", 2, "LAION aesthetic predictor, 1 to 10"),
}
Measured = dict[str, Any]  # row -> {figure: value}; and `clips`, `weights`, `intervals`, `note` where there are any


def parse(text: str) -> dict[str, Path]:
    """`lpips=DIR,clip=DIR` as paths that exist. Raises WorldlineError on an unknown name or a path that is not there."""
    options: dict[str, Path] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, place = part.partition("=")
        if name not in NEEDS or not place:
            raise WorldlineError(f"--tier2 {part!r}; expected NAME=PATH with NAME of {', '.join(NEEDS)}")
        if not Path(place).expanduser().exists():
            raise WorldlineError(f"--tier2 {name}: {place} does not exist; expected {NEEDS[name]}")
        options[name] = Path(place).expanduser()
    if "aesthetic" in options and "clip" not in options:
        raise WorldlineError(f"--tier2 aesthetic without clip; expected {NEEDS['aesthetic']}")
    return options


def skipped(name: str) -> dict[str, str]:
    """What is said of a figure whose files nobody named."""
    return {"status": "skipped", "reason": f"not asked for; it needs --tier2 {NEEDS[name]}"}


def learned_figures(plan: Plan, options: Mapping[str, Path], height: int, width: int) -> dict[str, dict[str, Any]]:
    """Tier 2 of a finished run: name -> {status, ...} for every name of NEEDS. Raises WorldlineError where a named file is
    not what it should be."""
    from worldline.evaluate.references import reference
    from worldline.evaluate.runner import shown
    from worldline.evaluate.truth import truth_of

    found: dict[str, dict[str, Any]] = {name: skipped(name) for name in NEEDS}
    if not options:
        return found
    clips = []
    for case in plan.cases():
        truth = truth_of(case, plan.truth, height, width)

        def row(name: str, case: Any = case, truth: Any = truth) -> np.ndarray:
            return shown(plan.out, case) if name == "model" else reference(name, truth)

        clips.append(Clip(case.id, case.suite, truth.caption, row))
    for name, place in options.items():
        module = import_module(f"worldline.evaluate.learned.{'clip' if name == 'aesthetic' else name}")
        if name == "aesthetic":
            measured = module.measure_aesthetic(clips, options["clip"], place)
        else:
            measured = module.measure(clips, place)
        found[name] = {"status": "ok", **measured} if "reason" not in measured else {"status": "skipped", **measured}
    return found


def as_columns(tiers: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Measured figures as the table has them: row -> figure -> {value, low, high, ...}, and their units."""
    rows: dict[str, dict[str, Any]] = {}
    units: dict[str, dict[str, Any]] = {}
    for name, tier in tiers.items():
        if name not in NEEDS or tier["status"] != "ok":
            continue
        for row in (r for r in ROWS if r in tier):
            for figure, value in tier[row].items():
                low, high = tier.get("intervals", {}).get(figure, (None, None)) if row == "model" else (None, None)
                rows.setdefault(row, {})[figure] = {
                    "value": value, "low": low, "high": high, "n": tier["clips"], "status": "ok", "reason": "",
                }  # fmt: skip
                unit, better, digits, about = UNITS.get(figure, ("", "higher", 3, f"VBench's {figure}"))
                units[figure] = {
                    "unit": unit, "better": better, "digits": digits, "about": about, "tier": 2, "column": True,
                }  # fmt: skip
    return rows, units


def digest(path: Path) -> str:
    """12 hex digits of a file, or of the weight files of a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in WEIGHTS)
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:12]


WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")


def windows(frames: np.ndarray, length: int) -> np.ndarray:
    """uint8 [F, H, W, 3] -> [n, length, H, W, 3], side by side, what is left over at the end dropped."""
    n = len(frames) // length
    return frames[: n * length].reshape(n, length, *frames.shape[1:])


def averaged(clips: Sequence[Mapping[str, Mapping[str, float]]]) -> Measured:
    """Means over episodes of row -> figure -> value, with bootstrap intervals of the model's."""
    from worldline.evaluate.statistics import mean_interval

    rows: Measured = {}
    intervals: dict[str, list[float]] = {}
    for row in dict.fromkeys(r for c in clips for r in c):
        rows[row] = {}
        for figure in dict.fromkeys(f for c in clips for f in c.get(row, {})):
            values = np.array([c[row][figure] for c in clips if figure in c.get(row, {})])
            mean = mean_interval(values)
            rows[row][figure] = round(mean.value, 6)
            if row == "model" and np.isfinite(mean.low):
                intervals[figure] = [round(mean.low, 6), round(mean.high, 6)]
    return {**rows, "intervals": intervals, "clips": len(clips)}
