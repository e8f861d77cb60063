"""One episode measured: frames against the truth, frame by frame. Nothing is averaged over episodes here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldline.evaluate.fidelity import psnr
from worldline.evaluate.inverse_dynamics import read_keys
from worldline.evaluate.metrics.exposure import exposure_psnr
from worldline.evaluate.metrics.flow import dense_flow
from worldline.evaluate.metrics.frames import check_clip, check_pair, shrunk
from worldline.evaluate.metrics.guards import blank_frames, most_flashes
from worldline.evaluate.metrics.keys import held_keys
from worldline.evaluate.metrics.motion import rates
from worldline.evaluate.metrics.quality import quality
from worldline.evaluate.metrics.revisit import loop_gain, revisit_gain, revisits, seam_psnr
from worldline.evaluate.metrics.ssim import ssim
from worldline.evaluate.metrics.steadiness import cuts, flicker, level_steps, warp_error
from worldline.evaluate.metrics.tolerant import tolerant_psnr
from worldline.evaluate.suites import FPS, Case
from worldline.evaluate.yaw import yaw_between
from worldline.schema import Controls

if TYPE_CHECKING:
    from worldline.evaluate.truth import Truth

METRIC_VERSION = 4  # of every formula that enters a Score; scores of two versions are never put together


@dataclass(frozen=True)
class Score:
    """Of one episode and one row. values: figures of the whole episode; series: by frame, [F + 1] of frames or [F] of
    steps (`rates` [F, 4])."""

    case: str
    suite: str
    variant: str
    split: str
    values: dict[str, float]
    series: dict[str, np.ndarray]


def score(frames: np.ndarray, truth: Truth, non_finite: int = 0) -> Score:
    """frames uint8 [F + 1, H, W, 3] of what the controls of `truth.case` gave. Raises ShapeError where they are of
    another size or number than the truth's: nothing is cut to fit."""
    check_pair(frames, truth.frames)
    case = truth.case
    alone = unreferenced(frames, case.controls, truth.cameras.K[0], FPS)
    series, values = dict(alone.series), dict(alone.values)
    tolerant = tolerant_psnr(frames, truth.frames)
    series |= {
        "psnr": psnr(frames, truth.frames),
        "ssim": ssim(frames, truth.frames),
        "exposure_psnr": exposure_psnr(frames, truth.frames),
        "tolerant": tolerant.psnr,
        "delay": tolerant.delay,
        "shift": tolerant.shift,
        "true_yaw": true_yaw(truth),
        "keys": held_keys(case.controls),
        "read": read_keys(frames),
    }
    values |= _returns(frames, truth, alone.series["yaw"])
    values["non_finite"] = float(non_finite)
    if "after" in case.marks:
        values["after"] = float(case.marks["after"][0])
    return Score(case.id, case.suite, case.variant, case.split, values, series)


def unreferenced(frames: np.ndarray, controls: Controls, K: np.ndarray, fps: float, name: str = "") -> Score:
    """What can be said without a truth: motion shown, steadiness, quality, guards. F + 1 frames for F rows of controls."""
    check_clip(frames)
    flow, yaw = dense_flow(frames), yaw_between(shrunk(frames), K, discount_level=True)
    series = {
        "yaw": yaw,
        "rates": rates(frames, K, yaw),
        "asked": np.stack([controls.look[:, 0], controls.look[:, 1], controls.move[:, 2], controls.move[:, 0]], axis=1),
        "warp": warp_error(flow),
        "level_steps": level_steps(flow),
        "quality": quality(frames),
    }
    values = {
        "flicker": flicker(frames, flow),
        "cuts": float(len(cuts(frames))),
        "blank": float(blank_frames(frames)),
        "flashes": float(most_flashes(frames, fps)),
        "still": float(np.mean(np.abs(np.diff(frames.astype(np.int16), axis=0)).max(axis=(1, 2, 3)) == 0)),
    }
    return Score(name, "open", "", "", values, series)


def true_yaw(truth: Truth) -> np.ndarray:
    """Degrees turned right from frame to frame, of the simulator's own cameras, [F]."""
    forward = truth.cameras.c2w[:, :3, 2]
    heading = np.unwrap(np.arctan2(forward[:, 1], forward[:, 0]))
    return -np.rad2deg(np.diff(heading))


def _returns(frames: np.ndarray, truth: Truth, yaw: np.ndarray) -> dict[str, float]:
    """Figures of scripts that come back."""
    case: Case = truth.case
    values: dict[str, float] = {}
    if "back" in case.marks:
        far, back = case.marks["far"][0], case.marks["back"][0]
        values["loop_gain"] = loop_gain(frames, far, back)
        values["net_turn"] = float(abs(yaw[:back].sum() - true_yaw(truth)[:back].sum()))
        values["turned_away"] = float(abs(yaw[:far].sum()))
    if "turn" in case.marks:
        turns = case.marks["turn"]
        values["seam"] = seam_psnr(frames, turns)
        values["closure"] = float(abs(yaw[: turns[-1]].sum() - true_yaw(truth)[: turns[-1]].sum()) / len(turns))
    if case.suite in ("S3", "S4", "S5", "S6", "S7", "S11"):
        values["revisit_gain"] = revisit_gain(frames, revisits(truth.cameras))
    return values
