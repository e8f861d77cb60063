"""Does a world that recalls what it saw come back to it? Loop suites S3, S4 and S6 with camera memory and without, paired.

    python -m benchmarks.camera_memory --out memory.json                                    # the bundled world as it is
    python -m benchmarks.camera_memory --adapt ENCODED --init MODEL --steps 200 --save DIR  # train with recalled context
    python -m benchmarks.camera_memory --world DIR/world --out memory.json --name adapted   # that world, with and without

Every case is walked from the same start, controls and noise, `without` memory and `with` it, and in two ways that cost as much
attention: a `window` as many latents longer, and the first latents as `sink`, kept as near as the memory keeps its own by
positions that are clamped. `clamp` and `with, clamp` are the first two under such positions. All these scripts return to where
they began, which flatters sinks. They are scored at the frames where they are back:

- `return_psnr`: PSNR of the best frame about a return with the first frame shown, mean over returns (S3: one; S4: after every
  turn; S6: after every cycle);
- `loop_gain`: that of S3 less PSNR of the farthest view with the first frame; a world that forgets, or stands still, gains
  nothing;
- `revisit_gain`: over all pairs of frames that look alike from one place with the view elsewhere in between, PSNR of the pair
  less PSNR with what lay between (S3, S4);
- `truth_psnr`, `truth_return`: PSNR with the simulator, over all frames and about the returns.

Walks are kept beside the truths, so that a run may be stopped and goes on. `--adapt` trains by teacher forcing on encoded
clips longer than the window (the `encode/latents` of a run), from `--init`: a causal multi-step model, which is asked in the
world's own few steps afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from worldline.data.loader import LatentDataset
from worldline.evaluate.adapter import EngineAdapter, drive
from worldline.evaluate.fidelity import psnr
from worldline.evaluate.metrics.revisit import loop_gain, revisit_gain, revisits, seam_psnr
from worldline.evaluate.statistics import mean_interval, paired_difference
from worldline.evaluate.store import read_clip, write_clip
from worldline.evaluate.suites import Case, cases, preset
from worldline.evaluate.truth import Truth, truth_of
from worldline.functional.masks import Visibility
from worldline.methods.teacher_forcing import TeacherForcingConfig
from worldline.models.backbone import Backbone
from worldline.models.registry import load_model, save_model
from worldline.models.text import HashTextEncoder
from worldline.recipes.assets import bundled
from worldline.recipes.cards import hardware
from worldline.rollout.history import CameraMemory
from worldline.stream.engine import Engine
from worldline.stream.world import WorldConfig
from worldline.train.config import TrainConfig
from worldline.train.loop import Trainer

FIGURES = ("return_psnr", "loop_gain", "revisit_gain", "truth_return", "truth_psnr")
SUITES = ("S3", "S4", "S6")
FORMS = ("without", "with", "window", "sink", "clamp", "with, clamp")
PAIRS = (("with", "without"), ("with", "window"), ("with", "sink"), ("with, clamp", "clamp"), ("with, clamp", "sink"))
NEAR = {"S3": 8, "S4": 8, "S6": 2}  # frames about a return that are searched; a cycle of S6 has sixteen


def returns(case: Case) -> list[int]:
    """The frames at which a script is back."""
    return list(case.marks.get("back") or case.marks.get("turn") or case.marks["cycle"])


def figures(frames: np.ndarray, truth: Truth) -> dict[str, float]:
    """All figures of one walk; nan where a script has none."""
    case, close = truth.case, psnr(frames, truth.frames)
    at, around = returns(case), NEAR[case.suite]
    gain = float("nan")
    if "back" in case.marks:
        gain = loop_gain(frames, case.marks["far"][0], case.marks["back"][0])
    return {
        "return_psnr": seam_psnr(frames, at, around),
        "loop_gain": gain,
        "revisit_gain": revisit_gain(frames, revisits(truth.cameras)),
        "truth_return": float(np.mean([close[max(1, t - around) : t + around + 1].mean() for t in at])),
        "truth_psnr": float(close[1:].mean()),
    }


def forms(config: WorldConfig, memory: CameraMemory) -> dict[str, WorldConfig]:
    """What is compared: a world's config in every form."""
    seen, n = config.visibility, memory.slots

    def near(form: WorldConfig) -> WorldConfig:
        return replace(form, positions="clamp", horizon=memory.horizon) if memory.horizon else form

    plain = replace(config, memory=None)
    return {
        "without": plain,
        "with": replace(config, memory=memory),
        "window": replace(plain, visibility=replace(seen, window=(seen.window or 0) + n)),
        "sink": near(replace(plain, visibility=replace(seen, sink=n))),
        "clamp": near(plain),
        "with, clamp": near(replace(config, memory=memory)),
    }


def walks(
    world: Path, memory: CameraMemory, chosen: list[str], wanted: list[Case], work: Path
) -> Iterator[tuple[Case, str, dict[str, float]]]:
    """Case by case, each form's figures; walks that are there are not walked again."""
    engines = {}
    for name, config in forms(WorldConfig.read(world), memory).items():
        if name not in chosen:
            continue
        engine = Engine.load(world, threads=1, warm=False)
        engine.config = config
        engines[name] = EngineAdapter(engine)
    for case in wanted:
        truth = truth_of(case, work / "truth")
        for name, model in engines.items():
            config = model.engine.config
            said = f"{model.engine.weights}-{config}".encode()
            path = work / "walks" / f"{case.id}-{case.fingerprint()}-{_digest(said)}.safetensors"
            if not path.is_file():
                played = drive(model, truth.start, truth.caption, case.controls, case.seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(path, played.frames)
            yield case, name, figures(read_clip(path), truth)


def _digest(said: bytes) -> str:
    return hashlib.sha256(said).hexdigest()[:12]


def summary(found: dict[str, dict[str, dict[str, float]]], suites: dict[str, list[str]]) -> dict[str, Any]:
    """found: form -> case -> figures; suites: name -> cases. Means, and what memory adds to every other form, paired."""
    out: dict[str, Any] = {}
    for suite, ids in suites.items():
        for figure in FIGURES:
            values = {form: np.array([of[i][figure] for i in ids]) for form, of in found.items()}
            known = np.all([np.isfinite(v) for v in values.values()], axis=0)
            if not known.any():
                continue
            row: dict[str, Any] = {"cases": int(known.sum())}
            for form, of in values.items():
                row[form] = mean_interval(of[known]).value
            for a, b in PAIRS:
                if a in values and b in values:
                    d = paired_difference(values[b][known], values[a][known])
                    row[f"{a} - {b}"] = {"value": d.value, "low": d.low, "high": d.high, "p": d.p}
            out.setdefault(suite, {})[figure] = row
    return out


def adapt(
    encoded: Path, init: Path, save: Path, steps: int, memory: CameraMemory, config: WorldConfig
) -> dict[str, Any]:
    """Teacher forcing with recalled context; leaves a world in `save` that is asked in the bundled world's steps."""
    model, data = load_model(init), LatentDataset(encoded)
    if not isinstance(model, Backbone):
        raise SystemExit(f"{init} holds a {type(model).__name__}; expected a causal video model")
    visibility: Visibility = config.visibility
    empty = HashTextEncoder(model.config.text_dim, model.config.text_len).encode([""])
    options = TeacherForcingConfig(weighting="uniform", shift=3.0, context_noise=0.15)
    method = options.build(model, visibility, empty, memory)
    train = TrainConfig(
        steps=steps, batch_size=4, optimizer="muon", lr=3e-4, warmup=10, ema_decay=0.95, precision="bf16", threads=1,
        save_every=25,
    )  # fmt: skip
    trainer = Trainer(method, data, train, save / "train", device=torch.device("cpu"), progress=_tell)
    result = trainer.fit()
    model.load_state_dict(trainer.trained_state("model"))
    save_model(
        model, save / "world", {"made": "benchmarks.camera_memory", "init": init.parent.name, "steps": result.step}
    )
    source = bundled("world")
    for part in ("codec", "starts"):
        shutil.copytree(source.parent / part, save / part, dirs_exist_ok=True)
    config.write(save / "world")
    return {"steps": result.step, "seconds": result.seconds, "clips": len(data), **result.last}


def _tell(step: int, steps: int, last: dict[str, float]) -> None:
    if step % 20 == 0:
        losses = "  ".join(f"{k} {v:.4f}" for k, v in last.items() if k.endswith("/loss"))
        Console().print(f"step {step}/{steps}  {losses}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=bundled("world"))
    parser.add_argument("--preset", default="full")
    parser.add_argument("--every", type=int, default=1, help="every n-th case of a suite")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--horizon", type=int, default=17, help="latents of the longest training clip")
    parser.add_argument("--margin", type=float, default=0.1)
    parser.add_argument("--work", type=Path, default=Path("camera-memory"), help="folder of truths and walks")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name", default="bundled", help="of these rows in the file")
    parser.add_argument("--adapt", type=Path, help="encoded clips to train on, then stop")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    memory = CameraMemory(slots=args.slots, horizon=args.horizon, margin=args.margin)
    if args.adapt is not None:
        if args.init is None or args.save is None:
            parser.error("--adapt needs --init and --save")
        trained = adapt(args.adapt, args.init, args.save, args.steps, memory, WorldConfig.read(args.world))
        (args.save / "adapted.json").write_text(json.dumps(trained, indent=1) + "\n")
        return
    by_suite = {s: cases(preset(args.preset, (s,)))[:: args.every] for s in args.suites}
    # Suites in turn, so that a run that is stopped has some of each.
    queue = [
        row
        for rank in range(max(map(len, by_suite.values())))
        for row in (c[rank] for c in by_suite.values() if rank < len(c))
    ]
    names = [name for name in forms(WorldConfig.read(args.world), memory) if name in args.forms]
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    for case, form, got in walks(args.world, memory, names, queue, args.work):
        found[form][case.id] = got
        if form == names[-1] and args.out is not None:
            _write(args, memory, found, by_suite)
    _show(summary(found, _named(found, by_suite)))


def _named(found: dict[str, dict[str, dict[str, float]]], by_suite: dict[str, list[Case]]) -> dict[str, list[str]]:
    done = list(found.values())[-1]
    named = {s: [c.id for c in of if c.id in done] for s, of in by_suite.items()}
    return {**{s: ids for s, ids in named.items() if ids}, "all": [i for ids in named.values() for i in ids]}


def _write(args: argparse.Namespace, memory: CameraMemory, found: Any, by_suite: dict[str, list[Case]]) -> None:
    rows = json.loads(args.out.read_text()) if args.out.is_file() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    adapted = args.world.parent / "adapted.json"
    rows[args.name] = {
        "date": str(date.today()), "commit": commit.stdout.strip(), "hardware": hardware(), "preset": args.preset,
        "memory": vars(memory), "adapted": json.loads(adapted.read_text()) if adapted.is_file() else None,
        "summary": summary(found, _named(found, by_suite)), "cases": found,
    }  # fmt: skip
    args.out.write_text(json.dumps(_plain(rows), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """What JSON has: null where there is no number, four digits after the point."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return value


def _show(rows: dict[str, Any]) -> None:
    forms = [form for form in FORMS if any(form in r for of in rows.values() for r in of.values())]
    pairs = [f"{a} - {b}" for a, b in PAIRS if {a, b} <= set(forms)]
    table = Table("suite", "figure", "cases", *forms, *pairs)
    for suite, of in rows.items():
        for figure, r in of.items():
            spans = [f"{d['value']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}]" for d in (r[pair] for pair in pairs)]
            table.add_row(suite, figure, str(r["cases"]), *(f"{r[form]:.2f}" for form in forms), *spans)
    Console().print(table)


if __name__ == "__main__":
    main()
