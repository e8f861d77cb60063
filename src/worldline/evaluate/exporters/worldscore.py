"""WorldScore (arXiv 2504.00983), static worlds: frames, cameras and a description of every instance.

    <out>/worldscore_output/static/stylized/indoor/doomrooms/<nnn>/
        frames/<nnn>.png, videos/output.mp4, input_image.png, camera_data.json, image_data.json

Its camera metric estimates poses with DROID-SLAM for a fixed focal length of 500 pixels at 512 x 512 and compares them, up to
one scale, with `cameras_interp`: camera-to-world with x of the world and z of the camera turned round against OpenCV's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worldline.evaluate.exporters import Episode
from worldline.evaluate.store import write_json
from worldline.schema import CameraPath, Controls
from worldline.video import write_exact

PLACE = ("static", "stylized", "indoor", "doomrooms")


def write(episodes: Sequence[Episode], model: str, out: Path) -> dict[str, Any]:
    """The whole layout; returns instance -> case. The model's name is the folder that its evaluator's config names."""
    where = {}
    for number, e in enumerate(episodes):
        name = f"{number:03d}"
        folder = out.joinpath("worldscore_output", *PLACE, name)
        (folder / "frames").mkdir(parents=True, exist_ok=True)
        digits = max(3, len(str(len(e.frames) - 1)))  # the evaluator sorts names
        for i, frame in enumerate(e.frames):
            Image.fromarray(frame).save(folder / "frames" / f"{i:0{digits}d}.png")
        write_exact(e.frames, folder / "videos" / "output.mp4", e.fps)
        Image.fromarray(e.start).save(folder / "input_image.png")
        width = e.frames.shape[2]
        cameras = worldscore_cameras(e.cameras)
        write_json(
            folder / "camera_data.json",
            {
                "focal_length": round(float(e.cameras.K[0, 0]) * width, 4), "scale": 1.0,
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
