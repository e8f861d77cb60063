"""Coming back: does a place look as it did, once the view had left it?

The gain is gated: PSNR of the return less PSNR of the farthest view. A frozen picture is the same everywhere and gains
nothing; a world that forgets gains nothing either.
"""

from __future__ import annotations

import numpy as np

from worldline.evaluate.fidelity import psnr
from worldline.evaluate.metrics.frames import check_clip
from worldline.schema import CameraPath, ShapeError

NEAR_DEG, NEAR_UNITS = 1.0, 3.0  # a place is the same within these ...
APART = 16  # ... and at least so many frames later ...
LEFT_DEG = 30.0  # ... when the view has turned this far away in between
AROUND = 8  # frames searched about a return, so that a world a little slow or late is not blamed twice


def loop_gain(frames: np.ndarray, far: int, back: int, around: int = AROUND) -> float:
    """uint8 [F, H, W, 3]; far, back: frames of the farthest view and of the return -> dB: the best PSNR with frame 0 of
    the frames within `around` of `back`, less that of frame `far`. 0 for a frozen clip."""
    F = len(check_clip(frames))
    if not 0 < far < back < F:
        raise ShapeError(f"far {far} and back {back} of {F} frames: expected 0 < far < back < {F}")
    window = frames[max(far + 1, back - around) : back + around + 1]
    first = np.broadcast_to(frames[:1], window.shape)
    return float(psnr(window, first).max() - psnr(frames[far], frames[0]))


def seam_psnr(frames: np.ndarray, turns: list[int], around: int = AROUND) -> float:
    """Mean over full turns (frames `turns`) of the best PSNR with frame 0 within `around` frames."""
    check_clip(frames)
    best = []
    for at in turns:
        window = frames[max(1, at - around) : at + around + 1]
        best.append(psnr(window, np.broadcast_to(frames[:1], window.shape)).max())
    return float(np.mean(best))


def revisits(path: CameraPath, limit: int = 200) -> list[tuple[int, int, int]]:
    """Pairs of frames (i, j) at one place with the farthest view k between them, (i, k, j); evenly thinned to `limit`."""
    forward, at = path.c2w[:, :3, 2], path.c2w[:, :3, 3]
    cosine = np.clip(forward @ forward.T, -1, 1)
    angle = np.rad2deg(np.arccos(cosine))
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1)
    same = (angle < NEAR_DEG) & (apart < NEAR_UNITS)
    found = []
    for i, j in np.argwhere(np.triu(same, APART)):
        k = int(i) + int(np.argmax(angle[i, i : j + 1]))
        if angle[i, k] > LEFT_DEG:
            found.append((int(i), k, int(j)))
    return found if len(found) <= limit else [found[n] for n in np.linspace(0, len(found) - 1, limit).astype(int)]


def revisit_gain(frames: np.ndarray, visits: list[tuple[int, int, int]]) -> float:
    """Mean of PSNR(i, j) - PSNR(i, k) over (i, k, j); nan without any. For a replay it is far above 0."""
    check_clip(frames)
    if not visits:
        return float("nan")
    i, k, j = (np.array(column) for column in zip(*visits, strict=True))
    return float((psnr(frames[i], frames[j]) - psnr(frames[i], frames[k])).mean())
