"""One unit (one map x N clips) in a process of its own: `python -m worldline.data.worker JOB.json`.

The engine may crash on its way out; the unit counts as done once its two files are in place, whatever the exit status.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

MAX_TRIES = 40  # spawns per clip before a map is given up as unwalkable


def make_unit(job: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Render a unit: arrays [N, F, ...] and one row a clip. Deterministic for (seed, map_seed)."""
    from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME, DoomRooms
    from worldline.data.sources.doomrooms.policy import random_walk, wall_contact
    from worldline.schema import WorldlineError

    frames, clips = job["frames"], []
    with ExitStack() as leave:
        scratch = leave.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        engine = DoomRooms(job["map_seed"], scratch, job["height"], job["width"])
        leave.callback(engine.close)
        for index in range(job["clips"]):
            rng = np.random.default_rng([job["seed"], job["map_seed"], index])
            blocked_allowed = rng.random() < job["contact_quota"]
            for _ in range(MAX_TRIES):
                spawn = engine.random_spawn(rng)
                controls = random_walk(frames - 1, rng)
                pixels, path = engine.play(spawn, controls)
                contact = wall_contact(controls, path.c2w, WALK_UNITS_PER_FRAME)
                if contact.mean() <= (1.0 if blocked_allowed else job["contact_limit"]):
                    break
            else:
                raise WorldlineError(
                    f"map {job['map_seed']} gave no walkable clip in {MAX_TRIES} tries; drop this map seed"
                )
            caption = engine.level.caption(spawn.x, spawn.y)
            clips.append((pixels, path, controls, contact, spawn, caption))
    last = np.zeros((1, 3), dtype=np.float32)
    arrays = {
        "frames": np.stack([c[0] for c in clips]),
        "c2w": np.stack([c[1].c2w for c in clips]),
        "K": np.stack([c[1].K for c in clips]),
        "move": np.stack([np.concatenate([c[2].move, last]) for c in clips]),
        "look": np.stack([np.concatenate([c[2].look, last]) for c in clips]),
        "contact": np.stack([np.append(c[3], False).astype(np.uint8) for c in clips]),
    }
    rows = [
        {
            "id": f"{job['unit']}-{i:03d}",
            "unit": job["unit"],
            "row": i,
            "split": job["split"],
            "map_seed": job["map_seed"],
            "caption": c[5],
            "spawn_x": c[4].x,
            "spawn_y": c[4].y,
            "spawn_angle": c[4].angle,
            "keys": ["+".join(k) for k in c[2].keys],
            "contact_share": float(c[3].mean()),
        }
        for i, c in enumerate(clips)
    ]
    return arrays, rows


def write_unit(root: Path, unit: str, arrays: dict[str, np.ndarray], rows: list[dict[str, Any]]) -> None:
    """Both files by temporary name and rename, the small one last: its presence means the unit is whole."""
    from safetensors.numpy import save_file

    tensors, table = root / f"{unit}.safetensors", root / f"{unit}.json"
    for path in (tensors, table):
        tmp = path.with_suffix(path.suffix + f".tmp{os.getpid()}")
        try:
            if path is tensors:
                save_file(arrays, tmp)
            else:
                tmp.write_text(json.dumps(rows, indent=1))
            os.replace(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)


def die_with(parent: int) -> None:
    """End this worker, its engine and its scratch folder when `parent` is gone: a killed build must not go on writing
    beside the one that resumes it. The worker leads a process group of its own."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        shutil.rmtree(Path.cwd(), ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Entry point of the worker process."""
    job = json.loads(Path(sys.argv[1]).read_text())
    die_with(job["parent"])
    arrays, rows = make_unit(job)
    write_unit(Path(job["out"]), job["unit"], arrays, rows)


if __name__ == "__main__":
    main()
