"""Golden layouts: the files, fields and conventions that other benchmarks' evaluators read, written out here by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from worldline.data.sources.doomrooms.engine import pose
from worldline.evaluate.exporters import Episode, export, plain_name
from worldline.evaluate.exporters.worldscore import layout_of, seen, worldscore_cameras
from worldline.schema import CameraPath, Controls, WorldlineError

#            W          W          W+right    stop       A           left
MOVE = [[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0], [-1, 0, 0], [0, 0, 0]]
LOOK = [[0, 0, 0], [0, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0], [-2, 0, 0]]


def episode(name: str, caption: str, loops: bool = False) -> Episode:
    rng = np.random.default_rng(len(name))
    frames, truth = rng.integers(0, 256, (2, 7, 16, 24, 3)).astype(np.uint8)
    # heading in degrees, counter-clockwise from east; turning right lowers it
    path = [(64, 32, 0), (72, 32, 0), (80, 32, 0), (88, 32, -2), (88, 32, -2), (88.28, 39.995, -2), (88.28, 39.995, 0)]
    c2w = np.stack([pose(x, y, 41, a) for x, y, a in path])
    cameras = CameraPath(c2w, np.array([0.5, 0.75, 0.5, 0.5]))
    return Episode(
        name, caption, Controls(np.array(MOVE), np.array(LOOK)), frames, truth, truth[0], cameras, 16.0, loops
    )


@pytest.fixture
def episodes() -> list[Episode]:
    return [episode("S3-pan-000", "a red room", loops=True), episode("S7-roam-000", "a hall / a door")]


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def read_video(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == 16
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_wbench(tmp_path, episodes):
    out = export("wbench", episodes, "my model", tmp_path / "out")
    assert tree(out) == [
        "data/cases/case_1.json", "data/cases/case_2.json", "data/images/1.png", "data/images/2.png", "export.json",
        "work_dirs/my-model/meta.json", "work_dirs/my-model/turns.json",
        "work_dirs/my-model/videos/case_1_combined.mp4", "work_dirs/my-model/videos/case_2_combined.mp4",
    ]  # fmt: skip
    assert json.loads((out / "data/cases/case_1.json").read_text()) == {
        "id": "1",
        "description": "a red room",
        "settings": {"perspective": "first_person", "initial_image": "images/1.png"},
        "interactions": [
            {"type": "navigation", "action": a} for a in ("W", "W+right", "stop", "A", "left")
        ],
    }  # fmt: skip
    turns = json.loads((out / "work_dirs/my-model/turns.json").read_text())
    # A turn's frames are those its keys lead to; the given frame is the first turn's, the last number is the clip's length.
    assert turns == {"fps": 16, "cases": {n: {"turn_frames": [0, 3, 4, 5, 6, 7]} for n in ("1", "2")}}
    meta = json.loads((out / "work_dirs/my-model/meta.json").read_text())
    assert meta == {"model_name": "my-model", "type": "action", "display_name": "my-model", "org": "", "contact": ""}
    video = read_video(out / "work_dirs/my-model/videos/case_2_combined.mp4")
    assert np.array_equal(video, episodes[1].frames)
    listed = json.loads((out / "export.json").read_text())
    assert listed["clips"]["1"] == {"case": "S3-pan-000", "turns": 5, "scored_turns": 4}


def test_mind(tmp_path, episodes):
    out = export("mind", episodes, "mine", tmp_path / "out")
    memory, action = "1st_data/test/mem_test/S3-pan-000", "1st_data/test/action_space_test/S7-roam-000"
    assert tree(out) == [
        f"MIND-Data/{action}/action.json", f"MIND-Data/{action}/video.mp4", f"MIND-Data/{memory}/action.json",
        f"MIND-Data/{memory}/video.mp4", "export.json", "mine/1st_data/action_space_test/S7-roam-000/video.mp4",
        "mine/1st_data/mem_test/S3-pan-000/video.mp4",
    ]  # fmt: skip
    for view in ("1st_data", "3rd_data"):  # the evaluator lists all of them
        for test in ("mem_test", "action_space_test"):
            assert (out / "MIND-Data" / view / "test" / test).is_dir()
            assert (out / "mine" / view / test).is_dir()
    log = json.loads((out / "MIND-Data" / memory / "action.json").read_text())
    assert (log["mark_time"], log["total_time"], log["caption"], len(log["data"])) == (1, 7, "a red room", 7)
    codes = [tuple(d[k] for k in ("ws", "ad", "ud", "lr")) for d in log["data"]]
    assert codes == [(1, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 2), (0, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    assert log["data"][1] == {
        "time": 1, "ws": 1, "ad": 0, "ud": 0, "lr": 0,
        "actor_pos": {"x": 225.0, "y": -100.0, "z": log["data"][0]["actor_pos"]["z"]},  # 72 and 32 units, 32 a metre
        "actor_rpy": {"x": 0.0, "y": 0.0, "z": 0.0},
    }  # fmt: skip
    assert log["data"][3]["actor_rpy"]["z"] == pytest.approx(2)  # to the right is positive
    # Strafing left is against y, which points right.
    assert log["data"][5]["actor_pos"]["y"] < log["data"][4]["actor_pos"]["y"]
    # Memory is the given frame: a prediction starts at mark_time.
    assert np.array_equal(read_video(out / "mine/1st_data/mem_test/S3-pan-000/video.mp4"), episodes[0].frames[1:])
    assert np.array_equal(read_video(out / "MIND-Data" / memory / "video.mp4"), episodes[0].truth)


def test_vbench(tmp_path, episodes):
    out = export("vbench", [*episodes, episode("S8-idle-000", "a red room")], "mine", tmp_path / "out")
    assert tree(out) == [
        "export.json", "prompts.json", "videos/a hall a door-0.mp4", "videos/a red room-0.mp4",
        "videos/a red room-1.mp4",
    ]  # fmt: skip
    assert json.loads((out / "prompts.json").read_text())["videos/a hall a door-0.mp4"] == "a hall / a door"


def test_worldscore(tmp_path, episodes):
    out = export("worldscore", episodes[:1], "mine", tmp_path / "out")
    folder = out / "worldscore_output/static/stylized/indoor/doomrooms/000"
    assert tree(folder) == [
        "camera_data.json", *(f"frames/{i:03d}.png" for i in range(7)), "image_data.json", "input_image.png",
        "videos/output.mp4",
    ]  # fmt: skip
    assert json.loads((folder / "image_data.json").read_text()) == {
        "visual_movement": "static", "visual_style": "stylized", "scene_type": "indoor", "category": "doomrooms",
        "camera_path": ["push_in"], "total_frames": 7, "prompt_list": ["a red room"] * 2, "num_scenes": 1,
        "anchor_frame_idx": [0, 6], "content_list": ["a red room"] * 2,
    }  # fmt: skip
    cameras = json.loads((folder / "camera_data.json").read_text())
    assert (cameras["focal_length"], cameras["scale"], len(cameras["cameras_interp"])) == (500.0, 1.0, 7)


def test_worldscore_frames_are_of_its_own_camera():
    """A ray keeps its place: what lies 0.1 to the right and 0.2 below the axis is at 256 + 50 and 256 + 100."""
    W, H, K = 240, 160, np.array([0.5, 0.75, 0.5, 0.5])
    frame = np.zeros((1, H, W, 3), np.uint8)
    frame[:, :, round((0.5 + 0.1 * 0.5) * W) :, 0] = 255
    frame[:, round((0.5 + 0.2 * 0.75) * H) :, :, 1] = 255
    (found,) = seen(frame, K)
    assert found.shape == (512, 512, 3)
    assert abs(int(np.argmax(found[10, :, 0] > 127)) - 306) <= 1
    assert abs(int(np.argmax(found[:, 10, 1] > 127)) - 356) <= 1
    with pytest.raises(WorldlineError, match="narrower than WorldScore's"):
        seen(frame, np.array([1.2, 1.8, 0.5, 0.5]))


def test_worldscore_cameras_are_what_its_metric_makes_of_a_perfect_estimate(episodes):
    relative = episodes[0].cameras.relative().c2w
    # Its metric turns an OpenCV camera-to-world estimate round twice: x of the world, then z of the camera.
    w2c = np.diag([1.0, 1, -1, 1]) @ np.linalg.inv(np.diag([-1.0, 1, 1, 1]) @ relative)
    assert np.allclose(worldscore_cameras(episodes[0].cameras), np.linalg.inv(w2c), atol=1e-12)


def test_worldscore_names_the_movement_that_takes_most_of_a_script():
    def made(move, look):
        return Controls(np.tile(move, (8, 1)), np.tile(look, (8, 1)))

    for move, look, name in (
        ((0, 0, 0), (0, 0, 0), "fixed"), ((0, 0, 0), (-2, 0, 0), "pan_left"), ((0, 0, -1), (1, 0, 0), "pull_out"),
        ((1, 0, 0), (0, 0, 0), "move_right"), ((0, 0, 1), (3, 0, 0), "pan_right"),
    ):  # fmt: skip
        assert layout_of(made(move, look)) == name


def test_other_folders_and_layouts_are_refused(tmp_path, episodes):
    with pytest.raises(WorldlineError, match="'vbenhc'; expected one of wbench, mind, vbench, worldscore"):
        export("vbenhc", episodes, "mine", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(WorldlineError, match="is not empty"):
        export("vbench", episodes, "mine", tmp_path / "mine")
    export("vbench", episodes, "mine", tmp_path / "out")
    export("vbench", episodes, "mine", tmp_path / "out")
    assert plain_name("../../etc") == "etc"
