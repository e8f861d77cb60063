"""WorldScore (arXiv 2504.00983), static worlds: frames, cameras and a description of every instance.

    <out>/worldscore_output/static/stylized/indoor/doomrooms/<nnn>/
        frames/<nnn>.png, videos/output.mp4, input_image.png, camera_data.json, image_data.json

Its camera metric estimates poses with DROID-SLAM for one camera, whatever made the frames: a focal length of 500 pixels and
the centre at (256, 256). Frames are therefore shown as that camera sees them, the middle of the picture at 512 x 512. It
compares the estimate, up to one scale, with `cameras_interp`: camera-to-world with x of the world and z of the camera turned
round against OpenCV's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worldline.evaluate.exporters import Episode
from worldline.evaluate.store import write_json
from worldline.schema import CameraPath, Controls, WorldlineError
from worldline.video import write_exact

SIDE, FOCAL = 512, 500.0  # pixels
PLACE = ("static", "stylized", "indoor", "doomrooms")


def write(episodes: Sequence[Episode], model: str, out: Path) -> dict[str, Any]:
    """The whole layout; returns instance -> case. The model's name is the folder that its evaluator's config names."""
    where = {}
    for number, e in enumerate(episodes):
        name = f"{number:03d}"
        folder = out.joinpath("worldscore_output", *PLACE, name)
        (folder / "frames").mkdir(parents=True, exist_ok=True)
        frames = seen(e.frames, e.cameras.K[0])
        digits = max(3, len(str(len(frames) - 1)))  # the evaluator sorts names
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / "frames" / f"{i:0{digits}d}.png")
        write_exact(frames, folder / "videos" / "output.mp4", e.fps)
        Image.fromarray(seen(e.start[None], e.cameras.K[0])[0]).save(folder / "input_image.png")
        cameras = worldscore_cameras(e.cameras)
        write_json(
            folder / "camera_data.json",
            {
                "focal_length": FOCAL, "scale": 1.0,
                "cameras": cameras[[0, -1]].tolist(), "cameras_interp": cameras.tolist(),
            },
        )  # fmt: skip
        write_json(folder / "image_data.json", image_data(e))
        where["/".join((*PLACE, name))] = {"case": e.case}
    return where


def image_data(e: Episode) -> dict[str, Any]:
    """What was asked for: one scene, the first and the last frame its anchors."""
    return {
        "visual_movement": PLACE[0],
        "visual_style": PLACE[1],
        "scene_type": PLACE[2],
        "category": PLACE[3],
        "camera_path": [layout_of(e.controls)],
        "total_frames": len(e.frames),
        "prompt_list": [e.caption, e.caption],
        "num_scenes": 1,
        "anchor_frame_idx": [0, len(e.frames) - 1],
        "content_list": [e.caption, e.caption],
    }


def seen(frames: np.ndarray, K: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] of a camera K (normalised fx, fy, cx, cy) -> [F, 512, 512, 3] of WorldScore's. Raises WorldlineError
    where the camera does not see as much."""
    import cv2

    H, W = frames.shape[1:3]
    half = SIDE / 2 / FOCAL  # of the view, in units of distance
    if min(K[2] - half * K[0], K[3] - half * K[1]) < 0 or max(K[2] + half * K[0], K[3] + half * K[1]) > 1:
        raise WorldlineError(
            f"a camera of fx {K[0]:.3f}, fy {K[1]:.3f} of the picture is narrower than WorldScore's, which its camera metric "
            "assumes; expected at most 0.976"
        )
    step = K[:2] * (W, H) / FOCAL  # source pixels for one of its own
    first = K[2:] * (W, H) - 0.5 - step * (SIDE - 1) / 2
    to_source = np.array([[step[0], 0, first[0]], [0, step[1], first[1]]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.stack(
        [cv2.warpAffine(f, to_source, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE) for f in frames]
    )


def worldscore_cameras(cameras: CameraPath) -> np.ndarray:
    """[F, 4, 4] in the gauge of the first frame and WorldScore's axes: diag(-1, 1, 1) c2w diag(1, 1, -1)."""
    return np.diag([-1.0, 1, 1, 1]) @ cameras.relative().c2w @ np.diag([1.0, 1, -1, 1])


def layout_of(controls: Controls) -> str:
    """The camera movement, in its words, that takes up most of a script: panning at 2 degrees a frame counts as much as
    walking at full speed."""
    amounts = {
        "fixed": 1e-9,
        "pan_right": controls.look[:, 0].clip(0).sum() / 2,
        "pan_left": (-controls.look[:, 0]).clip(0).sum() / 2,
        "push_in": controls.move[:, 2].clip(0).sum(),
        "pull_out": (-controls.move[:, 2]).clip(0).sum(),
        "move_right": controls.move[:, 0].clip(0).sum(),
        "move_left": (-controls.move[:, 0]).clip(0).sum(),
    }
    return max(amounts, key=lambda name: float(amounts[name]))
