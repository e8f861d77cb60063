"""Build a clip dataset: units of one map each, rendered in worker processes, idempotent and resumable.

On disk: units/<unit>.safetensors (frames, c2w, K, move, look, contact), units/<unit>.json (one row a clip), and, once all
units are there, manifest.parquet and dataset.json. A unit whose .json exists is finished and never touched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from worldline.data.reserved import refuse_reserved
from worldline.schema import WorldlineError

FORMAT = 2


class DataBuildError(WorldlineError):
    """A unit that could not be built; finished units are kept."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to render."""

    seed: int = 0
    maps: int = 24  # training maps, one unit each
    clips_per_map: int = 16
    heldout_maps: int = 4  # maps of the split `heldout`, never trained on
    frames: int = 45  # pixel frames a clip: 4 n + 1
    height: int = 64
    width: int = 96
    contact_limit: float = 0.6  # a clip with more wall contact is drawn again ...
    contact_quota: float = 0.05  # ... unless it falls in this share, so that blocking is learnt too
    first_map: int = 1000  # map seed of the first training map
    first_heldout_map: int = 900_000  # and of the first held-out map

    def __post_init__(self) -> None:
        if min(self.maps, self.clips_per_map, self.frames) < 1 or self.heldout_maps < 0:
            raise WorldlineError(f"{self}: expected at least one map, clip and frame")
        if self.first_map + self.maps > self.first_heldout_map:
            raise WorldlineError(
                f"{self.maps} maps from {self.first_map} run into held-out maps; use fewer than 899000"
            )
        last = max(self.first_map + self.maps, self.first_heldout_map + self.heldout_maps) - 1
        refuse_reserved((last,), "the dataset to build")

    def units(self) -> list[dict[str, object]]:
        """The jobs, in order."""
        seeds = [("train", self.first_map + i) for i in range(self.maps)]
        seeds += [("heldout", self.first_heldout_map + i) for i in range(self.heldout_maps)]
        shared = {
            k: v
            for k, v in asdict(self).items()
            if k in ("seed", "frames", "height", "width", "contact_limit", "contact_quota")
        }
        return [
            {**shared, "unit": f"{split}-{m:07d}", "split": split, "map_seed": m, "clips": self.clips_per_map}
            for split, m in seeds
        ]

    def fingerprint(self) -> str:
        """12 hex digits that change with anything that changes a unit's bytes (the number of maps does not)."""
        fixed = {k: v for k, v in asdict(self).items() if k not in ("maps", "heldout_maps")}
        return hashlib.sha256(json.dumps({**fixed, "format": FORMAT}, sort_keys=True).encode()).hexdigest()[:12]


Progress = Callable[[int, int, float], None]  # units done, units in all, frames a second


def build_dataset(
    config: DataConfig, root: str | Path, *, workers: int | None = None, progress: Progress | None = None
) -> Path:
    """Render what is missing under `root`; returns it. Raises DataBuildError when a unit fails twice, when the disk is
    full, or when `root` holds data of another config. Ctrl-C stops the workers and keeps all finished units."""
    root = Path(root)
    units = root / "units"
    units.mkdir(parents=True, exist_ok=True)
    _claim(config, root)
    todo = [job for job in config.units() if not (units / f"{job['unit']}.json").exists()]
    done, total = len(config.units()) - len(todo), len(config.units())
    _check_space(config, todo, root)
    running: dict[subprocess.Popen[bytes], tuple[dict[str, object], Path]] = {}
    failures: dict[str, int] = {}
    began, rendered = time.monotonic(), 0
    if progress is not None:
        progress(done, total, 0.0)
    try:
        while todo or running:
            while todo and len(running) < (workers or os.cpu_count() or 1):
                job = todo.pop(0)
                running.update(_launch(job, units))
            time.sleep(0.05)
            for process in [p for p in running if p.poll() is not None]:
                job, scratch = running.pop(process)
                _stop(process)  # a crashed worker may leave its engine behind
                log = (scratch / "log").read_text(errors="replace")[-2000:]
                shutil.rmtree(scratch, ignore_errors=True)
                unit = str(job["unit"])
                if (units / f"{unit}.json").exists():
                    done += 1
                    rendered += int(str(job["clips"])) * config.frames
                    if progress is not None:
                        progress(done, total, rendered / (time.monotonic() - began))
                    continue
                failures[unit] = failures.get(unit, 0) + 1
                if failures[unit] > 1:
                    raise DataBuildError(
                        f"unit {unit} failed twice (exit status {process.returncode}); {done} of {total} finished units are kept "
                        f"in {units}; run again to go on. Its last words:\n{log}"
                    )
                todo.append(job)
    finally:
        for process, (_, scratch) in running.items():
            _stop(process)
            shutil.rmtree(scratch, ignore_errors=True)
    try:
        _write_manifest(config, root)
    except OSError as error:
        raise DataBuildError(
            f"all {total} units are in {units}, but the manifest could not be written: {error}; run again"
        ) from error
    return root


def _claim(config: DataConfig, root: Path) -> None:
    """One config a folder: refuse to mix, sweep half-written files of a killed run."""
    mark = root / "config.json"
    if mark.exists():
        there = json.loads(mark.read_text())["fingerprint"]
        if there != config.fingerprint():
            raise DataBuildError(
                f"{root} holds data of config {there}, not {config.fingerprint()}; choose another folder or delete this one"
            )
    else:
        mark.write_text(json.dumps({"fingerprint": config.fingerprint(), **asdict(config)}, indent=1))
    for stray in (root / "units").glob("*.tmp*"):
        stray.unlink(missing_ok=True)


def _check_space(config: DataConfig, todo: list[dict[str, object]], root: Path) -> None:
    need = len(todo) * config.clips_per_map * config.frames * config.height * config.width * 3
    free = shutil.disk_usage(root).free
    if need > free:
        raise DataBuildError(
            f"{need / 2**20:.0f} MiB to write under {root}, {free / 2**20:.0f} MiB free; free some, or build fewer maps"
        )


def _launch(job: dict[str, object], units: Path) -> dict[subprocess.Popen[bytes], tuple[dict[str, object], Path]]:
    """Start a worker in its own folder and process group, so that its engine can be ended with it."""
    scratch = Path(tempfile.mkdtemp(prefix="worldline-unit-"))
    (scratch / "job.json").write_text(json.dumps({**job, "out": str(units.resolve()), "parent": os.getpid()}))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    with open(scratch / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worldline.data.worker", str(scratch / "job.json")],
            cwd=scratch,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return {process: (job, scratch)}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a worker, dead or alive, and its engine, by process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _write_manifest(config: DataConfig, root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME

    rows = [row for job in config.units() for row in json.loads((root / "units" / f"{job['unit']}.json").read_text())]
    pq.write_table(pa.Table.from_pylist(rows), root / "manifest.parquet.tmp")
    os.replace(root / "manifest.parquet.tmp", root / "manifest.parquet")
    info = {
        "format": FORMAT,
        "source": "doomrooms (ViZDoom, procedural maps, own textures)",
        "licence": "Apache-2.0",
        "pose_source": "engine",
        "fps": 16,
        "stride": 4,
        "metres_per_unit": 1 / 32,
        "walk_units_per_frame": WALK_UNITS_PER_FRAME,
        # One constant a dataset: straight walking moves 0.08 a latent of four pixel frames.
        "move_scale": 0.08 / (4 * WALK_UNITS_PER_FRAME),
        "clips": len(rows),
        "config": asdict(config),
        "fingerprint": config.fingerprint(),
    }
    tmp = root / "dataset.json.tmp"
    tmp.write_text(json.dumps(info, indent=1))
    os.replace(tmp, root / "dataset.json")
