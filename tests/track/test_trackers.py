"""Every tracker writes its own files without a network, and reads back what it was told; missing ones say what to install."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import worldline.track as track
from worldline.track import TrackerError, open_trackers, parse
from worldline.train.log import Log, read_log


@pytest.fixture
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3)).astype(np.uint8)


def tell(name: str, folder: Path, clip: np.ndarray, resume_step: int = 0) -> Path:
    """Two steps of scalars (one not finite), a picture, a clip."""
    (tracker,) = open_trackers([name], folder, "run/stage", {"lr": 1e-3}, resume_step=resume_step)
    for step in (resume_step, resume_step + 20):
        tracker.scalars({"flow/loss": 1.0 / (step + 1), "odd": float("nan")}, step)
    tracker.image("film", clip[0], resume_step + 20)
    tracker.video("worst", clip, 16, resume_step + 20)
    tracker.close()
    return folder / name


def test_an_unknown_and_a_missing_tracker_say_what_to_do(monkeypatch):
    with pytest.raises(TrackerError, match="'tensorbord'; expected some of tensorboard, wandb, trackio, rerun"):
        parse("tensorbord")
    monkeypatch.setitem(track.PACKAGES, "wandb", "no_such_package_anywhere")
    with pytest.raises(TrackerError, match=r"pip install 'worldline\[wandb\]'"):
        parse("wandb")
    assert parse("") == ()


def test_tensorboard(tmp_path, clip):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tell("tensorboard", tmp_path, clip)
    found = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert [(e.step, round(e.value, 4)) for e in found.Scalars("flow/loss")] == [(0, 1.0), (20, 0.0476)]
    assert found.Tags()["scalars"] == ["flow/loss"]
    film, worst = found.Images("film")[0], found.Images("worst")[0]
    assert (film.width, film.height) == (32, 24)
    assert worst.encoded_image_string[:4] == b"GIF8"


def test_a_tensorboard_run_that_goes_on_has_every_step_once(tmp_path, clip):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell("tensorboard", tmp_path, clip)
    folder = tell("tensorboard", tmp_path, clip, resume_step=20)
    steps = [e.step for e in EventAccumulator(str(folder)).Reload().Scalars("flow/loss")]
    assert steps == [0, 20, 40]


def test_wandb_offline(tmp_path, clip, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tell("wandb", tmp_path, clip)
    (run,) = folder.glob("wandb/offline-run-*")
    (file,) = run.glob("*.wandb")
    said = file.read_bytes()
    assert b"flow/loss" in said
    assert b"run/stage" in said
    assert list(run.rglob("*.mp4"))


def test_trackio(tmp_path, clip, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    trackio = pytest.importorskip("trackio")
    tell("trackio", tmp_path, clip)
    run = trackio.Api().runs(track.PROJECT)[0]
    assert run.name == "run-stage"
    assert list((tmp_path / "store").rglob("*.mp4"))


def test_rerun(tmp_path, clip):
    rerun = pytest.importorskip("rerun")
    folder = tell("rerun", tmp_path, clip)
    (file,) = folder.glob("*.rrd")
    assert file.name == "run-stage-0.rrd"
    recording = rerun.dataframe.load_recording(file) if hasattr(rerun, "dataframe") else None
    if recording is not None:
        names = {str(column.entity_path) for column in recording.schema().component_columns()}
        assert {"/flow/loss", "/film", "/worst"} <= names
    else:
        said = file.read_bytes()
        assert said[:4] == b"RRF2"
        assert len(said) > 2000


def test_a_training_log_tells_its_trackers_what_it_writes(tmp_path):
    class Kept:
        def __init__(self) -> None:
            self.told, self.closed = [], False

        def scalars(self, values, step):
            self.told.append((step, dict(values)))

        def close(self):
            self.closed = True

    kept = Kept()
    log = Log(tmp_path, 0, [kept])
    log.write(0, {"flow/loss": 2.0})
    log.write(20, {"flow/loss": 1.0})
    log.close()
    assert kept.told == [(0, {"flow/loss": 2.0}), (20, {"flow/loss": 1.0})]
    assert kept.closed
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == read_log(tmp_path)
