"""Run a preset with a model: play, measure, keep. Stops and resumes at any episode; many processes share the work.

On disk, under the run: manifest.json (what is evaluated), clips/<case>.safetensors, scores/<row>/<case>-*.npz, and, once
every episode is there, results.json, per_episode.csv, report.html, card.md. Truths and the scores of rows that are the same
for every model lie in a folder of their own, which all runs share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from worldline.evaluate.adapter import Expects, Reconstructs, WorldAdapter, drive
from worldline.evaluate.references import SHARED, reference
from worldline.evaluate.score import METRIC_VERSION, Score, score
from worldline.evaluate.store import read_clip, read_score, score_path, write_clip, write_json, write_score
from worldline.evaluate.suites import FPS, PROTOCOL, Case, cases, preset, seeds_hash, suite_hash
from worldline.evaluate.truth import Truth, truth_of, truth_path
from worldline.schema import WorldlineError

Progress = Callable[[int, int, str], None]  # episodes done, in all, the last one's name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run. episodes: of every script at most so many, 0: all of the preset; frames: controls of an episode at most,
    0: all; shard: (i, n): every n-th episode from the i-th; workers: processes that render truths and measure reference rows,
    0: none beside this one."""

    preset: str = "smoke"
    suites: tuple[str, ...] = ()
    episodes: int = 0
    frames: int = 0
    out: Path
    truth: Path
    shard: tuple[int, int] = (0, 1)
    workers: int = 1

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 0 <= i < n:
            raise WorldlineError(f"shard {i}/{n}; expected 0/n to n-1/n, such as 0/2 and 1/2")
        if min(self.episodes, self.frames) < 0:
            raise WorldlineError(f"{self.episodes} episodes of {self.frames} frames; expected 1 or more, or 0 for all")

    def cases(self) -> list[Case]:
        """All episodes of the preset, as far as they are played."""
        entries = preset(self.preset, self.suites)
        if self.episodes:
            entries = [replace(e, count=min(e.count, self.episodes)) for e in entries]
        made = cases(entries)
        return [c.cut(self.frames) for c in made] if self.frames else made


def evaluate(model: WorldAdapter, plan: Plan, progress: Progress | None = None) -> dict[str, dict[str, Score]] | None:
    """Play and measure what is missing. Returns row -> case -> score, or None where other shards have episodes left.

    Raises WorldlineError where the model's frame rate is another than the suites', or the folder holds another model.
    """
    info, wanted = model.info(), plan.cases()
    if info.fps != FPS:
        raise WorldlineError(
            f"{info.name} runs at {info.fps:g} frames a second and the suites at {FPS}; give an adapter that shows {FPS}"
        )
    _claim(model, plan, wanted)
    mine = wanted[plan.shard[0] :: plan.shard[1]]
    with _Truths(plan, mine, info.height, info.width) as truths:
        for done, (case, truth) in enumerate(truths):
            _model_rows(model, plan, case, truth)
            if progress is not None:
                progress(done + 1, len(mine), case.id)
    return collect(plan, wanted, info.height, info.width)


def collect(plan: Plan, wanted: list[Case], height: int, width: int) -> dict[str, dict[str, Score]] | None:
    """All rows of a run from disk; None where an episode of the model is missing."""
    rows: dict[str, dict[str, Score]] = {}
    for row in ("model", "codec", *SHARED):
        folder = (
            plan.out / "scores" / row if row in ("model", "codec") else shared_scores(plan.truth, row, height, width)
        )
        found = {c.id: score_path(folder, c.id, c.fingerprint()) for c in wanted}
        there = {case: path for case, path in found.items() if path.is_file()}
        if len(there) < len(wanted) and row != "codec":
            return None
        if there:
            rows[row] = {case: read_score(path) for case, path in there.items()}
    return rows


def shared_scores(truth: Path, row: str, height: int, width: int) -> Path:
    """Where the scores of a row that needs no model lie."""
    return truth / f"{width}x{height}-scores" / row


def prepare(case: Case, folder: Path, height: int, width: int) -> None:
    """Render a truth and measure the rows that need no model, where that is not done yet."""
    truth: Truth | None = None
    for row in SHARED:
        path = score_path(shared_scores(folder, row, height, width), case.id, case.fingerprint())
        if not path.is_file():
            truth = truth or truth_of(case, folder, height, width)
            write_score(path, score(reference(row, truth), truth))
    if truth is None and not truth_path(case, folder, height, width).is_file():
        truth_of(case, folder, height, width)


class _Truths:
    """Truths of cases in order, prepared ahead by other processes."""

    def __init__(self, plan: Plan, todo: list[Case], height: int, width: int) -> None:
        self.todo, self.folder, self.size = todo, plan.truth, (height, width)
        # Spawned, not forked: this process may hold threads of the tensor library.
        self.pool = (
            ProcessPoolExecutor(plan.workers, mp_context=get_context("spawn"), initializer=_quiet)
            if plan.workers
            else None
        )

    def __enter__(self) -> Iterator[tuple[Case, Truth]]:
        make = partial(prepare, folder=self.folder, height=self.size[0], width=self.size[1])
        ahead: list[Future[None]] = [self.pool.submit(make, c) for c in self.todo] if self.pool else []

        def each() -> Iterator[tuple[Case, Truth]]:
            for i, case in enumerate(self.todo):
                ahead[i].result() if ahead else make(case)
                yield case, truth_of(case, self.folder, *self.size)

        return each()

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """One thread a worker: there are as many workers as there is room for."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _model_rows(model: WorldAdapter, plan: Plan, case: Case, truth: Truth) -> None:
    """The rows `model` and `codec` of one case, where they are missing."""
    path = score_path(plan.out / "scores" / "model", case.id, case.fingerprint())
    if not path.is_file():
        clip = clip_path(plan.out, case)
        if isinstance(model, Expects):
            model.expect(truth)
        played = drive(model, truth.start, truth.caption, case.controls, case.seed)
        write_clip(clip, played.frames)
        found = score(played.frames, truth, played.non_finite)
        if model.info().timed:
            timing = {
                "first_ms": played.reset_ms + float(played.step_ms[0]) if len(played.step_ms) else float("nan"),
                "frames_per_step": float(model.info().frames_per_step),
            }
            found = replace(found, values=found.values | timing, series=found.series | {"step_ms": played.step_ms})
        write_score(path, found)
    if isinstance(model, Reconstructs):
        path = score_path(plan.out / "scores" / "codec", case.id, case.fingerprint())
        if not path.is_file():
            write_score(path, score(np.asarray(model.reconstruct(truth.frames)), truth))


def clip_path(out: Path, case: Case) -> Path:
    """Where the frames of a case lie."""
    return out / "clips" / f"{case.id}-{case.fingerprint()}.safetensors"


def shown(out: Path, case: Case) -> np.ndarray:
    """The model's frames of a case, uint8 [F + 1, H, W, 3]."""
    return read_clip(clip_path(out, case))


def _claim(model: WorldAdapter, plan: Plan, wanted: list[Case]) -> None:
    """One model, protocol and metric version a folder."""
    info, path = model.info(), plan.out / "manifest.json"
    manifest = {
        "model": info.as_dict(), "protocol": PROTOCOL, "metric_version": METRIC_VERSION, "seeds": seeds_hash(),
        "preset": plan.preset, "suites": list(plan.suites), "suite_hash": suite_hash(wanted),
        "truth": str(plan.truth), "episodes": plan.episodes, "frames": plan.frames,
    }  # fmt: skip
    if path.is_file():
        there = json.loads(path.read_text())
        for key, old, new in (
            ("weights", there["model"]["weights"], info.weights),
            ("protocol", there["protocol"], PROTOCOL),
            ("metric version", there["metric_version"], METRIC_VERSION),
        ):
            if old != new:
                raise WorldlineError(f"{plan.out} holds results of {key} {old}, not {new}; choose another --out")
    write_json(path, manifest)
