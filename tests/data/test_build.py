"""Building: bit-identical for a seed, finished units untouched, whole after any stop."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from worldline.data import build, worker
from worldline.data.build import DataBuildError, DataConfig, build_dataset
from worldline.data.dataset import open_dataset
from worldline.data.reserved import ReservedMapError
from worldline.schema import WorldlineError


def stamp(root: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and bytes of every file of the finished units."""
    done = [p.stem for p in (root / "units").glob("*.json")]
    files = [root / "units" / f"{unit}{end}" for unit in done for end in (".json", ".safetensors")]
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_manifest_and_description(built: Path, config: DataConfig):
    rows = pq.read_table(built / "manifest.parquet").to_pylist()
    assert [r["id"] for r in rows] == [f"{job['unit']}-{i:03d}" for job in config.units() for i in range(4)]
    by_split = {s: {r["map_seed"] for r in rows if r["split"] == s} for s in ("train", "heldout")}
    assert by_split == {"train": {1000, 1001}, "heldout": {900_000}}
    info = json.loads((built / "dataset.json").read_text())
    assert info["clips"] == len(rows) == 12
    assert info["fps"] == 16
    assert info["pose_source"] == "engine"
    assert info["move_scale"] * info["walk_units_per_frame"] * info["stride"] == pytest.approx(0.08)
    assert info["fingerprint"] == config.fingerprint()


def test_captions_describe_the_place_and_never_the_camera(built: Path):
    words = {
        w for r in pq.read_table(built / "manifest.parquet").to_pylist() for w in r["caption"].replace(",", "").split()
    }
    moves = "turn turning turns walk walking walks move moving moves pan panning left right forward camera view"
    assert not words & set(moves.split())
    assert {"with", "floor"} <= words


def test_finished_data_is_left_alone_and_more_maps_extend_it(config: DataConfig, tmp_path: Path):
    small = dataclasses.replace(config, maps=1, heldout_maps=0, clips_per_map=2, frames=9)
    build_dataset(small, tmp_path, workers=1)
    before, seen = stamp(tmp_path), []
    build_dataset(small, tmp_path, workers=1, progress=lambda *state: seen.append(state))
    assert seen == [(1, 1, 0.0)]
    build_dataset(dataclasses.replace(small, maps=2), tmp_path, workers=1)
    after = stamp(tmp_path)
    assert {k: after[k] for k in before} == before
    assert len(open_dataset(tmp_path)) == 4


def test_same_seed_same_bytes_other_seed_other_clips(built: Path, config: DataConfig):
    job = config.units()[0]
    arrays, rows = worker.make_unit(job)
    dataset = open_dataset(built)
    for i, row in enumerate(rows):
        clip = dataset[i]
        assert row["id"] == clip.id
        np.testing.assert_array_equal(arrays["frames"][i], clip.frames)
        np.testing.assert_array_equal(arrays["c2w"][i], clip.cameras.c2w)
        np.testing.assert_array_equal(arrays["move"][i], clip.controls.move)
    other, _ = worker.make_unit({**job, "seed": 8, "clips": 1})
    assert (other["c2w"][0] != arrays["c2w"][0]).any()


def test_killed_build_resumes_with_finished_units_untouched(config: DataConfig, tmp_path: Path):
    small = dataclasses.replace(config, maps=3, heldout_maps=0)
    code = (
        "from worldline.data.build import DataConfig, build_dataset; import sys;"
        f"build_dataset(DataConfig(**{dataclasses.asdict(small)!r}), sys.argv[1], workers=1)"
    )
    root = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], start_new_session=True)
    while process.poll() is None and not list((root / "units").glob("*.json")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (root / "units" / "train-0001002.safetensors.tmp99").write_bytes(b"half")  # what a cut write leaves
    time.sleep(0.5)  # the orphaned worker notices within 0.1 s
    before = stamp(root)
    assert 0 < len(before) < 6, "the kill came too late to test anything"
    assert not (root / "dataset.json").exists()
    with pytest.raises(WorldlineError, match="no finished dataset"):
        open_dataset(root)
    build_dataset(small, root, workers=1)
    after = stamp(root)
    assert {k: after[k] for k in before} == before
    for job in small.units():
        worker.write_unit(tmp_path, str(job["unit"]), *worker.make_unit(job))  # never stopped, in another process
        for end in (".json", ".safetensors"):
            name = f"{job['unit']}{end}"
            assert after[name][1] == (tmp_path / name).read_bytes()
    assert not list((root / "units").glob("*.tmp*"))
    assert len(open_dataset(root)) == 12


def test_orphaned_worker_ends_itself(tmp_path: Path):
    """A worker whose parent is another process than named is as good as orphaned."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    stranger = 1 if os.getpid() != 1 else 2
    code = f"from worldline.data import worker; worker.die_with({stranger}); import time; time.sleep(60)"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=scratch, start_new_session=True)
    assert process.wait(timeout=20) == -signal.SIGKILL
    assert not scratch.exists()


def test_a_failing_unit_is_named_and_the_finished_ones_counted(config: DataConfig, tmp_path: Path, monkeypatch):
    small = dataclasses.replace(config, maps=1, heldout_maps=0, clips_per_map=1, frames=5)
    build_dataset(small, tmp_path, workers=1)
    monkeypatch.setattr(build.sys, "executable", "/bin/false")
    with pytest.raises(DataBuildError, match=r"train-0001001 failed twice .*1 of 2 finished units are kept") as error:
        build_dataset(dataclasses.replace(small, maps=2), tmp_path, workers=1)
    assert "run again" in str(error.value)
    monkeypatch.undo()
    build_dataset(dataclasses.replace(small, maps=2), tmp_path, workers=1)
    assert len(open_dataset(tmp_path)) == 2


def test_disk_full_while_writing_leaves_no_part_of_a_unit(tmp_path: Path, monkeypatch):
    def full(arrays: dict[str, np.ndarray], path: Path) -> None:
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        worker.write_unit(tmp_path, "u", {"frames": np.zeros(1)}, [])
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_the_start(config: DataConfig, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataBuildError, match="MiB to write"):
        build_dataset(config, tmp_path, workers=1)


def test_a_folder_holds_one_config(built: Path, config: DataConfig):
    with pytest.raises(DataBuildError, match="holds data of config"):
        build_dataset(dataclasses.replace(config, seed=8), built)


def test_bad_sizes_are_refused():
    with pytest.raises(WorldlineError, match="at least one map"):
        DataConfig(maps=0)
    with pytest.raises(WorldlineError, match="run into held-out maps"):
        DataConfig(maps=900_000)


def test_maps_of_the_evaluation_are_refused():
    with pytest.raises(ReservedMapError, match=r"\[950000\].*below 950000"):
        DataConfig(first_heldout_map=949_999, heldout_maps=2)
    with pytest.raises(ReservedMapError, match="990000"):
        DataConfig(first_map=990_000, maps=1, heldout_maps=0, first_heldout_map=990_001)
