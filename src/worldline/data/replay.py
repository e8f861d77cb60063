"""The simulator as ground truth: the same start under any controls, in worker processes like the builder's."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldline.schema import CameraPath, Controls, WorldlineError


@dataclass(frozen=True)
class Job:
    """One replay: a map, a spawn (x, y, angle) or None to draw one from `seed`, and the controls."""

    map_seed: int
    controls: Controls
    spawn: tuple[int, int, float] | None = None
    seed: int = 0
    height: int = 64
    width: int = 96


@dataclass(frozen=True)
class Replayed:
    """frames: uint8 [F + 1, H, W, 3]; cameras of each; where it started and what that place is."""

    frames: np.ndarray
    cameras: CameraPath
    spawn: tuple[int, int, float]
    caption: str


def replay(jobs: list[Job], timeout: float = 600.0) -> list[Replayed]:
    """Run the jobs, one engine process a map. The same job gives the same bytes, and a clip's own controls give the clip.

    Raises WorldlineError naming the map where an engine gave no result.
    """
    by_map: dict[int, list[int]] = {}
    for i, job in enumerate(jobs):
        by_map.setdefault(job.map_seed, []).append(i)
    results: dict[int, Replayed] = {}
    for map_seed, members in by_map.items():
        for i, result in zip(members, _run_map(map_seed, [jobs[i] for i in members], timeout), strict=True):
            results[i] = result
    return [results[i] for i in range(len(jobs))]


def _run_map(map_seed: int, jobs: list[Job], timeout: float) -> list[Replayed]:
    with tempfile.TemporaryDirectory(prefix="worldline-replay-", ignore_cleanup_errors=True) as scratch:
        out = Path(scratch) / "out.pickle"
        (Path(scratch) / "jobs.pickle").write_bytes(pickle.dumps(jobs))
        with open(Path(scratch) / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worldline.data.replay", scratch],
                cwd=scratch,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                process.wait(timeout)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if not out.exists():
            words = (Path(scratch) / "log").read_text(errors="replace")[-1500:]
            raise WorldlineError(f"the simulator gave no result for map {map_seed} (exit status {process.returncode}):\n{words}")
        return pickle.loads(out.read_bytes())


def _main(scratch: Path) -> None:
    from worldline.data.sources.doomrooms.engine import DoomRooms, Spawn

    jobs: list[Job] = pickle.loads((scratch / "jobs.pickle").read_bytes())
    engine = DoomRooms(jobs[0].map_seed, scratch, jobs[0].height, jobs[0].width)
    done = []
    for job in jobs:
        rng = np.random.default_rng([job.seed, job.map_seed])
        spawn = engine.random_spawn(rng) if job.spawn is None else Spawn(*job.spawn)
        frames, cameras = engine.play(spawn, job.controls)
        done.append(Replayed(frames, cameras, (spawn.x, spawn.y, spawn.angle), engine.level.caption(spawn.x, spawn.y)))
    (scratch / "out.tmp").write_bytes(pickle.dumps(done))
    os.replace(scratch / "out.tmp", scratch / "out.pickle")


if __name__ == "__main__":
    # Run under its import name, so that pickled classes are found.
    from worldline.data import replay as module

    module._main(Path(sys.argv[1]))
