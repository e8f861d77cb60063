"""`worldline generate` on a tiny world: every mode, determinism, whole files, one-line errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import randomise
from tests.tiny_world import HEIGHT, WIDTH, write_tiny_world
from worldline.cli import clips, generate, main
from worldline.control import trajectories
from worldline.models.registry import save_model
from worldline.models.wan import WanConfig, WanModel
from worldline.schema import Controls
from worldline.stream.engine import Engine


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_tiny_world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model without cameras."""
    sizes = dict(dim=32, ffn_dim=48, num_heads=2, num_layers=1, text_dim=8, text_len=6, in_channels=4, out_channels=4)
    return save_model(randomise(WanModel(WanConfig(**sizes, freq_dim=16))), tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(world, *argv: str) -> int:
    return main(["generate", "--model", str(world), *argv])


def clip(path="clip.mp4") -> tuple[np.ndarray, float]:
    import av

    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]), rate


def made(world, *argv: str) -> np.ndarray:
    """The frames themselves, before they are encoded."""
    from rich.console import Console

    from worldline.cli import parser

    args = parser().parse_args(["generate", "--model", str(world), *argv])
    return np.stack(list(generate.frames_of(clips.prepare(args), args.seed, Console(quiet=True))))


def test_help_shows_examples_and_every_way_to_say_where_to_go(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["generate", "--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("examples:", "w*8,l*4", "poses.json", "keys.csv", "walk.safetensors"))


def test_a_walk_becomes_a_video_and_a_sheet(world, tmp_path, capsys):
    assert run(world, "--trajectory", "w*2,l*4,wd*2", "--overlay", "--sheet", "s/walk.png", "--out", "v/walk.mp4") == 0
    frames, rate = clip("v/walk.mp4")
    assert frames.shape == (33, 4 * HEIGHT, 4 * WIDTH, 3)
    assert rate == 16
    with Image.open("s/walk.png") as sheet:
        assert sheet.width == 6 * (4 * WIDTH + 6) - 6
        assert sheet.height > 2 * 4 * HEIGHT
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["walk.mp4", "walk.png"]
    assert "33 frames, 2.1 s, seed 0 (w*2,l*4,wd*2)" in capsys.readouterr().out.replace("\n", "")


def test_the_file_has_the_frames_that_were_made(world):
    run(world, "--trajectory", "w*3", "--scale", "1", "--fps", "8")
    frames, rate = clip()
    assert rate == 8
    assert np.abs(frames.astype(int) - made(world, "--trajectory", "w*3")).mean() < 8  # H.264 of noise


def test_keys_are_drawn_on_the_frames_they_drive(world):
    run(world, "--trajectory", "w*1,l*1", "--overlay")
    frames, _ = clip()
    high = 4 * HEIGHT / 8.5  # of a cap
    top, left = int(4 * HEIGHT - 2.3 * high), int(1.6 * high)
    w = frames[:, top : top + int(high / 2), left : left + int(high / 2)].mean(axis=(1, 2, 3))
    above_arrow = slice(-int(1.3 * high), -int(1.05 * high)), slice(-int(1.1 * high), -int(0.6 * high))
    right = frames[:, *above_arrow].mean(axis=(1, 2, 3))
    assert (w > 180).tolist() == [False] + [True] * 4 + [False] * 4
    assert (right > 180).tolist() == [False] * 5 + [True] * 4


def test_the_model_is_given_the_poses_of_the_string(world):
    """What reaches the model is minWM's camera of every latent, in model units, whatever units the world walks in."""
    from worldline.cli import parser

    args = parser().parse_args(["generate", "--model", str(world), "--trajectory", "w*2,wl*2,i*1"])
    job = clips.prepare(args)
    cameras = job.player.request(job.image[None], [job.cameras], [job.prompt]).cameras
    poses = trajectories.parse("w*2,wl*2,i*1").poses()
    np.testing.assert_allclose(cameras.w2c[0], np.linalg.inv(poses), atol=1e-6)
    np.testing.assert_allclose(cameras.motion[0, 1], (0, 0, 0, 0, 0, 0.08), atol=1e-6)


MODES = [
    pytest.param([], id="few-step"),
    pytest.param(["--steps", "1"], id="one-step"),
    pytest.param(["--mode", "ar", "--steps", "3", "--guidance", "2"], id="ar"),
    pytest.param(["--mode", "bidirectional", "--steps", "3"], id="bidirectional"),
]


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_is_a_clip(world, mode):
    if "bidirectional" in mode:
        mode = [*mode, "--weights", str(world)]
    said = [*mode, "--trajectory", "w*1,l*2", "--start", "cellar"]
    frames = made(world, *said)
    assert frames.shape == (13, HEIGHT, WIDTH, 3)
    assert np.array_equal(frames, made(world, *said))
    other = made(world, *said, "--seed", "1")
    assert np.array_equal(frames[0], other[0])
    assert not np.array_equal(frames[1:], other[1:])
    turned = made(world, *mode, "--trajectory", "w*1,j*2", "--start", "cellar")
    assert not np.array_equal(frames[5:], turned[5:])
    prompted = made(world, *said, "--prompt", "fire")
    assert not np.array_equal(frames[1:], prompted[1:])


def test_modes_differ(world):
    said = ["--trajectory", "w*2"]
    few, ar = made(world, *said), made(world, *said, "--mode", "ar", "--steps", "3", "--guidance", "2")
    whole = made(world, *said, "--mode", "bidirectional", "--weights", str(world), "--steps", "3", "--guidance", "2")
    assert not np.array_equal(few, ar)
    assert not np.array_equal(ar, whole)
    assert not np.array_equal(ar, made(world, *said, "--mode", "ar", "--steps", "3", "--guidance", "4"))


def test_weights_without_cameras_say_so_and_do_not_turn(world, base, capsys):
    said = ["--mode", "bidirectional", "--weights", str(base), "--steps", "2"]
    assert run(world, *said, "--trajectory", "w*2") == 0
    assert "take no cameras" in capsys.readouterr().out
    assert np.array_equal(made(world, *said, "--trajectory", "w*2"), made(world, *said, "--trajectory", "j*2"))


def test_a_clip_starts_from_any_picture(world, tmp_path):
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "room.png")
    own = made(world, "--trajectory", "w*1", "--start", "room.png")
    assert not np.array_equal(own[0], made(world, "--trajectory", "w*1")[0])
    assert np.array_equal(
        made(world, "--trajectory", "w*1")[0], made(world, "--trajectory", "w*1", "--start", "hall")[0]
    )


def test_a_key_log_is_walked_as_in_live_play(world, tmp_path):
    """The same cameras as a session's: a log and the session saved from it give one clip."""
    engine = Engine.load(world, threads=1, warm=False)
    session = engine.session("hall", seed=0)
    rows = [["w"]] * 4 + [["w", "right"]] * 4
    look = np.zeros((8, 3))
    look[4:, 0] = engine.config.turn_deg_per_frame
    walked = Controls(np.tile((0, 0, 1), (8, 1)), look, tuple(tuple(r) for r in rows))
    for i in range(2):
        session.step(walked[4 * i : 4 * i + 4])
    session.save(tmp_path / "walk.safetensors")
    (tmp_path / "keys.json").write_text(json.dumps(rows))
    frames = made(world, "--trajectory", "keys.json")
    assert np.array_equal(frames, made(world, "--trajectory", "walk.safetensors"))
    assert frames.shape[0] == session.frame_index == 9


@pytest.mark.parametrize(
    ("argv", "frames"),
    [
        ([], 49),
        (["--frames", "9"], 9),
        (["--seconds", "1.1"], 17),
        (["--seconds", "0.01"], 5),
        (["--trajectory", "w*2", "--frames", "13", "--length", "pad-last"], 13),
        (["--trajectory", "w*9", "--seconds", "1", "--length", "truncate"], 17),
    ],
)
def test_how_long_a_clip_is(world, argv, frames):
    from worldline.cli import parser

    job = clips.prepare(parser().parse_args(["generate", "--model", str(world), *argv]))
    assert len(job.route) == len(job.cameras) == frames


def test_chunks_of_three_latents_are_whole(tmp_path):
    wide = write_tiny_world(tmp_path / "wide", chunk=3, window=6)
    assert len(made(wide, "--seconds", "1")) == 13
    assert run(wide, "--trajectory", "w*4") == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trajectory", "w*8,q*4"], "'q' at character 5 is no key"),
        (["--trajectory", "nowhere.csv"], "nowhere.csv is not readable"),
        (["--trajectory", "nowhere.safetensors"], "is not readable as a session"),
        (["--trajectory", "w*2", "--frames", "13"], "the trajectory has 9 pixel frames, 13 are asked for"),
        (["--trajectory", "w*2", "--frames", "12", "--length", "fit"], "use --frames 9 or 13"),
        (["--frames", "0"], "0 pixel frames; expected at least 1"),
        (["--frames", "1", "--length", "fit"], "use --frames 5"),
        (["--seconds", "-1"], "--seconds -1.0; expected above 0"),
        (["--seconds", "nan"], "--seconds nan; expected above 0"),
        (["--start", "attic"], "start 'attic' is no file and none of hall cellar"),
        (["--start", "text.png"], "is no readable picture"),
        (["--prompt", "x" * 501], "prompt of 501 characters"),
        (["--expand", "chat"], "--expand without a prompt"),
        (
            ["--prompt", "fire", "--expand", "nowhere"],
            "nowhere has no config.json; expected the local folder of a chat model",
        ),
        (["--seed", "-1"], "--seed -1"),
        (["--out", "clip.gif"], "clip.gif is no .mp4 file name"),
        (["--out", "text.png/clip.mp4"], "cannot be written"),
        (["--sheet", "sheet.jpg"], "sheet.jpg is no .png file name"),
        (["--fps", "0"], "--fps 0.0; expected 1 to 1000"),
        (["--scale", "0"], "--scale 0; expected 1 to 64"),
        (["--threads", "0"], "--threads 0; expected 1 to 1024"),
        (["--turn", "inf"], "--turn inf"),
        (["--steps", "3"], "3 few-step denoising steps; expected one of [1, 2, 4]"),
        (["--guidance", "2"], "--guidance 2.0 in few steps"),
        (["--mode", "ar", "--steps", "0"], "--steps 0"),
        (["--mode", "bidirectional"], "needs a bidirectional model"),
        (["--weights", "nowhere"], "nowhere is no model directory"),
        (["--device", "warp"], "--device warp is not here"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(world, tmp_path, argv, message, capsys):
    (tmp_path / "text.png").write_text("no picture")
    assert run(world, *argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["text.png"]


def test_a_prompt_can_be_written_out_by_a_chat_model(world, tmp_path, monkeypatch, capsys):
    from worldline.models.prompts import PromptExpander

    monkeypatch.setattr(PromptExpander, "expand", lambda self, prompts: [f"a hall of {p}" for p in prompts])
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "config.json").write_text("{}")
    said = ["--trajectory", "w*1", "--prompt"]
    assert run(world, *said, "fire", "--expand", "chat") == 0
    assert "prompt: a hall of fire" in capsys.readouterr().out
    assert np.array_equal(made(world, *said, "fire", "--expand", "chat"), made(world, *said, "a hall of fire"))


def test_weights_of_another_codec_are_refused(world, tmp_path, capsys):
    sizes = dict(dim=32, ffn_dim=48, num_heads=2, num_layers=1, text_dim=8, text_len=6, in_channels=8, out_channels=8)
    save_model(WanModel(WanConfig(**sizes, freq_dim=16)), tmp_path / "wide")
    assert run(world, "--weights", "wide") == 2
    assert "4 latent channels" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, RuntimeError])
def test_a_clip_that_is_stopped_leaves_the_file_of_before(world, tmp_path, monkeypatch, trouble):
    (tmp_path / "clip.mp4").write_text("the clip of before")
    stream = generate.frames_of

    def stopped(*args):
        for i, frame in enumerate(stream(*args)):
            if i == 70:
                assert list(tmp_path.glob(".*.mp4")), "the encoder has written by now"
                raise trouble
            yield frame

    monkeypatch.setattr(generate, "frames_of", stopped)
    if trouble is KeyboardInterrupt:
        assert run(world, "--trajectory", "w*20", "--scale", "1", "--sheet", "s.png") == 130
    else:
        with pytest.raises(RuntimeError):
            run(world, "--trajectory", "w*20", "--scale", "1", "--sheet", "s.png")
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_text() == "the clip of before"
