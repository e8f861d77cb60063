"""Tier 1: camera paths of a clip, estimated from its frames.

Two estimators, never one alone: structure from motion (COLMAP, through the optional `pycolmap`) has no solution for turning
on the spot, and a rotation says nothing about walking. The clip's median parallax chooses: where one rotation explains
almost all matches, the camera turned; else it moved. A clip neither explains counts as failed, and the share of clips that
succeeded is a figure of its own. Every estimator errs: run it on the replay too and read a model beside that.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from worldline.evaluate.metrics.frames import check_clip
from worldline.evaluate.metrics.pose import ate, cam_mc, rotation_errors_deg, translation_errors
from worldline.evaluate.metrics.rotation import rotations
from worldline.schema import WorldlineError

if TYPE_CHECKING:
    from worldline.evaluate.runner import Plan

SUITES = ("S3", "S4", "S5", "S7")
CLIPS = 8  # at most, evenly taken: COLMAP needs half a minute of a core for a clip
TURNED = 0.9  # share of matches that one rotation explains, from which a clip is a turn on the spot
REGISTERED = 0.8  # share of frames structure from motion must place
Estimator = Literal["rotation", "sfm"]


class PoseUnavailable(WorldlineError):
    """Structure from motion was needed and pycolmap is not installed."""


@dataclass(frozen=True)
class Estimated:
    """estimator; frames [n] of the clip; c2w [n, 4, 4] in the gauge of the first, in a scale of its own (zeros for a
    rotation); registered: share of the picked frames that were placed."""

    estimator: Estimator
    frames: np.ndarray
    c2w: np.ndarray
    registered: float


def estimate(clip: np.ndarray, K: np.ndarray, stride: int = 4) -> Estimated | None:
    """uint8 [F, H, W, 3]; K: [4] normalised fx, fy, cx, cy. None where no estimator succeeds. Raises PoseUnavailable where
    the camera moved and there is no pycolmap."""
    turn = rotations(check_clip(clip), K, stride)
    if turn is not None and len(turn.inliers) and float(np.median(turn.inliers)) >= TURNED:
        c2w = np.tile(np.eye(4), (len(turn.R), 1, 1))
        c2w[:, :3, :3] = turn.R
        return Estimated("rotation", turn.frames, c2w, 1.0)
    return structure_from_motion(clip, K, stride)


def structure_from_motion(clip: np.ndarray, K: np.ndarray, stride: int = 3) -> Estimated | None:
    """COLMAP's incremental mapping of every `stride`-th frame with known intrinsics; None where it places too few."""
    try:
        import pycolmap
    except ImportError as error:
        raise PoseUnavailable(f"estimating a moving camera needs pycolmap ({error}); pip install pycolmap") from error
    from PIL import Image

    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)  # it tells of every pair it tries
    picked = np.arange(0, len(check_clip(clip)), stride)
    H, W = clip.shape[1:3]
    names = [f"{i:05d}.png" for i in picked]
    with tempfile.TemporaryDirectory(prefix="worldline-sfm-") as scratch:
        root = Path(scratch)
        (root / "images").mkdir()
        for name, i in zip(names, picked, strict=True):
            Image.fromarray(clip[i]).save(root / "images" / name)
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = "PINHOLE"
        reader.camera_params = ",".join(repr(float(v)) for v in (K[0] * W, K[1] * H, K[2] * W, K[3] * H))
        extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
        options = pycolmap.IncrementalPipelineOptions()
        extraction.num_threads = matching.num_threads = options.num_threads = 1
        extraction.use_gpu = matching.use_gpu = False
        options.ba_refine_focal_length = options.ba_refine_extra_params = options.ba_refine_principal_point = False
        options.random_seed = 0
        pairing = pycolmap.SequentialPairingOptions()
        pairing.overlap = 8
        pairing.quadratic_overlap = False  # far pairs that share one flat wall start the mapping with a wrong camera
        database = root / "database.db"
        pycolmap.extract_features(
            database, root / "images", image_names=names, camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader, extraction_options=extraction,
        )  # fmt: skip
        pycolmap.match_sequential(database, matching_options=matching, pairing_options=pairing)
        made = pycolmap.incremental_mapping(database, root / "images", root, options=options)
    if not made:
        return None
    best = max(made.values(), key=lambda m: m.num_reg_images())
    poses = {image.name: image.cam_from_world().matrix() for image in best.images.values() if image.has_pose}
    kept = [k for k, name in enumerate(names) if name in poses]
    if len(kept) < max(3, REGISTERED * len(names)):
        return None
    w2c = np.tile(np.eye(4), (len(kept), 1, 1))
    w2c[:, :3] = [poses[names[k]] for k in kept]
    c2w = np.linalg.inv(w2c)
    return Estimated("sfm", picked[kept], np.linalg.inv(c2w[0]) @ c2w, len(kept) / len(names))


def pose_errors(found: Estimated, truth: np.ndarray) -> dict[str, float]:
    """Of an estimate against true poses [F, 4, 4] of all frames: rot_err_deg (mean), rot_err_sum_rad (CameraCtrl's), and
    for a moving camera trans_err (mean, after the best scale, as a share of the path), trans_err_rel_sum (CamI2V's),
    cam_mc_sum, ate (share of the path)."""
    target = truth[found.frames]
    degrees = rotation_errors_deg(found.c2w, target)
    out = {"rot_err_deg": float(degrees.mean()), "rot_err_sum_rad": float(np.deg2rad(degrees).sum())}
    if found.estimator == "rotation":
        return out
    walked = np.linalg.inv(target[0]) @ target
    t, u = found.c2w[:, :3, 3], walked[:, :3, 3]
    scale = float((t * u).sum() / max(float((t * t).sum()), 1e-12))
    scaled = found.c2w.copy()
    scaled[:, :3, 3] *= scale
    path = max(float(np.linalg.norm(np.diff(u, axis=0), axis=1).sum()), 1e-12)
    return out | {
        "trans_err": float(translation_errors(scaled, target).mean()) / path,
        "trans_err_rel_sum": float(translation_errors(found.c2w, target, relative=True).sum()),
        "cam_mc_sum": float(cam_mc(found.c2w, target).sum()),
        "ate": ate(found.c2w, target) / path,
    }


def pose_figures(plan: Plan, height: int, width: int) -> dict[str, Any]:
    """Tier 1 of a finished run: for the model and, as the floor of the estimator, for the replay: mean errors over the
    clips that could be estimated, and the share that could (`success`). {"status": "skipped", "reason": ...} where the
    preset has no fitting episodes."""
    from worldline.evaluate.runner import shown
    from worldline.evaluate.truth import truth_of

    wanted = [c for c in plan.cases() if c.suite in SUITES]
    wanted = [wanted[i] for i in sorted({*np.linspace(0, len(wanted) - 1, min(CLIPS, len(wanted))).astype(int)})]
    if not wanted:
        return {"status": "skipped", "reason": f"the preset has none of {', '.join(SUITES)}"}
    rows: dict[str, list[dict[str, float] | None]] = {"model": [], "replay": []}
    for case in wanted:
        truth = truth_of(case, plan.truth, height, width)
        for row, frames in (("model", shown(plan.out, case)), ("replay", truth.frames)):
            try:
                found = estimate(frames, truth.cameras.K[0])
            except PoseUnavailable as error:
                return {"status": "skipped", "reason": str(error)}
            rows[row].append(None if found is None else pose_errors(found, truth.cameras.c2w))
    out: dict[str, Any] = {"status": "ok", "reason": "", "clips": len(wanted)}
    for row, errors in rows.items():
        had = [e for e in errors if e is not None]
        names = sorted({n for e in had for n in e})
        means = {n: float(np.mean([e[n] for e in had if n in e and np.isfinite(e[n])] or [np.nan])) for n in names}
        out[row] = {
            "success": len(had) / len(errors),
            **{n: round(v, 6) if np.isfinite(v) else None for n, v in means.items()},
        }
    return out
