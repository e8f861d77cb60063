"""Clips made elsewhere, by any model in any environment, scored here.

`export_inputs` writes, for every episode of a preset, what a model is given: <case>.png (the start image) and <case>.json
(prompt, seed, frame rate, intrinsics, and the controls of every pixel frame in units, as keys, as WorldPlay's 81 action classes
a latent, and under `codecs` in every published vocabulary that can say them). Whoever has the model writes <case>.npy, .npz
(`frames`), .mkv or .mp4 beside them, one frame more than there are control rows, the start included; `ClipsAdapter` reads them
back as a model. Other names, with an action log <name>.json of the same form beside them, are open-domain clips: scored without
a truth (`open_domain`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.control import actions, codecs
from worldline.evaluate.adapter import ModelInfo
from worldline.evaluate.metrics.guards import as_clip
from worldline.evaluate.suites import FPS, Case
from worldline.schema import Controls, WorldlineError

if TYPE_CHECKING:
    from worldline.evaluate.score import Score
    from worldline.evaluate.truth import Truth

EXACT = (".npy", ".npz")
VIDEO = (".mkv", ".mp4", ".webm", ".avi")
LOSSLESS = ("ffv1", "rawvideo", "png", "huffyuv", "utvideo")
STRIDE = 4  # pixel frames a latent, of the class track


def action_log(controls: Controls, turn: float, fps: float = FPS) -> dict[str, Any]:
    """Controls as JSON, exact: `move` (right, up, forward) in units of full speed, `look` (yaw right, pitch up, roll) in
    degrees a frame, `keys`; and, for models that take classes, `worldplay`: one of 81 a latent of 4 frames."""
    log: dict[str, Any] = {
        "fps": fps,
        "move": controls.move.astype(float).tolist(),
        "look": controls.look.astype(float).tolist(),
        "keys": [list(k) for k in controls.keys],
    }
    whole = len(controls) // STRIDE * STRIDE
    if whole:
        log["worldplay"] = actions.class_ids(actions.encode(controls[:whole], STRIDE, turn)).tolist()
    return log


def controls_of_log(log: Any, source: str = "action log", turn: float = 2.0) -> Controls:
    """Controls of a log: `move` and `look`, or `codec` with the rows of a vocabulary of `control.codecs`, or `keys` alone, or
    `worldplay` classes alone. turn: degrees a frame of a held turn key. Raises WorldlineError where it holds none of them."""
    if isinstance(log, dict) and "move" in log and "look" in log:
        keys = tuple(tuple(k) for k in log.get("keys", ()))
        return Controls(np.array(log["move"], dtype=np.float32), np.array(log["look"], dtype=np.float32), keys)
    if isinstance(log, dict) and "codec" in log:
        return codecs.controls_of(log, turn, STRIDE)
    if isinstance(log, dict) and "keys" in log:
        return actions.controls_of_keys(log["keys"], turn)
    if isinstance(log, dict) and "worldplay" in log:
        return actions.decode(actions.signs_of_classes(np.array(log["worldplay"])), STRIDE, turn)
    raise WorldlineError(f"{source} holds no actions; expected `move` and `look`, `codec`, `keys` or `worldplay`")


def in_codecs(controls: Controls, turn: float) -> dict[str, Any]:
    """The controls in every vocabulary that can say them, by name; rows behind the last whole latent are left out."""
    whole, said = controls[: len(controls) // STRIDE * STRIDE], {}
    for name, spoken in codecs.CODECS.items():
        try:
            said[name] = spoken.encode(whole, turn=turn, stride=STRIDE)
        except actions.ActionError:
            continue
    return said


def export_inputs(truths: list[Truth], folder: str | Path) -> Path:
    """Write the start images and action logs of episodes. Returns the folder."""
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for truth in truths:
        case = truth.case
        Image.fromarray(truth.start).save(folder / f"{case.id}.png")
        said = {
            "case": case.id, "fingerprint": case.fingerprint(), "prompt": truth.caption, "seed": case.seed,
            "K": truth.cameras.K[0].tolist(), "frames": len(case.controls) + 1, **action_log(case.controls, 2.0),
            "codecs": in_codecs(case.controls, 2.0),
        }  # fmt: skip
        (folder / f"{case.id}.json").write_text(json.dumps(said) + "\n")
    return folder


class ClipsAdapter:
    """A folder of clips as a model. Its `expect` is told the episode; the clip's own log, where there is one, must be that
    episode's."""

    def __init__(self, folder: str | Path, name: str = "") -> None:
        self.folder = Path(folder)
        clips = _clips(self.folder)
        if not clips:
            raise WorldlineError(f"{folder} holds no clips; expected files such as S2-yaw-000.npy or .mkv")
        digest = hashlib.sha256()
        for path in clips:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        first, lossy = read_frames(clips[0])
        self._info = ModelInfo(
            name=name or self.folder.name, fps=FPS, height=first.shape[1], width=first.shape[2], frames_per_step=1,
            weights=digest.hexdigest()[:12], lossy=lossy or any(p.suffix in VIDEO and read_frames(p)[1] for p in clips[1:]),
            device="elsewhere", timed=False, facts={"source": "clips"},
        )  # fmt: skip
        self._frames: np.ndarray | None = None
        self._at = 0

    def info(self) -> ModelInfo:
        """Of the folder."""
        return self._info

    def has(self, case: Case) -> bool:
        """Whether the episode's clip is there."""
        return any((self.folder / f"{case.id}{suffix}").is_file() for suffix in EXACT + VIDEO)

    def expect(self, truth: Truth) -> None:
        """Open the clip of an episode. Raises WorldlineError where it is missing, has another number or size of frames, or
        was made under other actions."""
        case = truth.case
        found = [p for p in (self.folder / f"{case.id}{s}" for s in EXACT + VIDEO) if p.is_file()]
        if not found:
            raise WorldlineError(f"{self.folder} has no clip {case.id}; write {case.id}.npy, or leave its suite out")
        frames = read_frames(found[0])[0]
        if frames.shape != truth.frames.shape:
            raise WorldlineError(
                f"{found[0]} has frames {frames.shape}; expected {truth.frames.shape}, nothing is cut to fit"
            )
        log = self.folder / f"{case.id}.json"
        if log.is_file():
            said = controls_of_log(json.loads(log.read_text()), str(log))
            same = len(said) == len(case.controls) and all(
                np.allclose(x, y, atol=1e-4)
                for x, y in ((said.move, case.controls.move), (said.look, case.controls.look))
            )
            if not same:
                raise WorldlineError(
                    f"{log} has other actions than {case.id} of this protocol; export the inputs again"
                )
        self._frames = frames

    def reset(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """The clip's first frame."""
        if self._frames is None:
            raise WorldlineError("reset before expect; tell the folder its episode first")
        self._at = 0
        return self._frames[0]

    def step(self, controls: Controls) -> np.ndarray:
        """The next frames of the clip."""
        if self._frames is None:
            raise WorldlineError("step before reset; call reset(image, prompt, seed) first")
        self._at += len(controls)
        return self._frames[self._at - len(controls) + 1 : self._at + 1]


def open_domain(folder: str | Path) -> list[Score]:
    """Scores of clips with an action log of their own and no truth: <name>.npy or video, <name>.json with actions and `K`
    (normalised fx, fy, cx, cy; default: that of the doomrooms source). Raises WorldlineError where a log does not fit."""
    from worldline.data.sources.doomrooms.engine import intrinsics
    from worldline.evaluate.score import unreferenced

    clips = _clips(Path(folder))
    if not clips:
        raise WorldlineError(
            f"{folder} holds no clips; expected files such as walk.npy or walk.mp4, each with walk.json beside it"
        )
    scores = []
    for path in clips:
        log = path.with_suffix(".json")
        if not log.is_file():
            raise WorldlineError(f"{path.name} has no action log; write {log.name} beside it")
        said = json.loads(log.read_text())
        controls, frames = controls_of_log(said, str(log)), read_frames(path)[0]
        if len(frames) != len(controls) + 1:
            raise WorldlineError(
                f"{path.name} has {len(frames)} frames for {len(controls)} rows of actions; expected {len(controls) + 1}"
            )
        K = np.array(said.get("K", intrinsics()), dtype=np.float64)
        scores.append(unreferenced(frames, controls, K, float(said.get("fps", FPS)), path.stem))
    return scores


def read_frames(path: Path) -> tuple[np.ndarray, bool]:
    """uint8 [F, H, W, 3] of a file, and whether it was stored with loss."""
    if path.suffix == ".npy":
        return as_clip(np.load(path))[0], False
    if path.suffix == ".npz":
        with np.load(path) as file:
            if "frames" not in file.files:
                raise WorldlineError(f"{path} has arrays {file.files}; expected `frames`")
            return as_clip(file["frames"])[0], False
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        name, pixels = stream.codec_context.name, stream.codec_context.pix_fmt or ""
    if not frames:
        raise WorldlineError(f"{path} holds no frames")
    return np.stack(frames), not (name in LOSSLESS and ("rgb" in pixels or "bgr" in pixels or "gbr" in pixels))


def _clips(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in EXACT + VIDEO) if folder.is_dir() else []
