"""A very long walk: does memory, time or the picture change over it?

    nice -n 19 python -m benchmarks.soak --chunks 10000 --json soak.json

Walks and turns through the bundled world (or --world), commits every chunk, and now and then notes resident memory, the log's
bytes, CPU milliseconds a chunk, contrast and the largest latent. Slopes are least squares over the second half of the walk.
CPU time is that of the process: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from worldline.schema import Controls
from worldline.stream.engine import Engine

MARKS = 100


def soak(engine: Engine, chunks: int, minutes: float, seed: int) -> dict[str, Any]:
    """Walk `chunks` chunks under pseudo-random controls, fewer where `minutes` have passed; flat figures."""
    session, rng, process = engine.session(seed=seed), np.random.default_rng(seed), psutil.Process()
    n, turn = engine.frames_per_chunk, engine.config.turn_deg_per_frame
    rows: list[tuple[float, ...]] = []
    every, yaw, ahead, far = max(1, min(25, chunks // MARKS)), 0.0, 1, 0.0
    begin, before, reanchored = time.perf_counter(), time.process_time(), 0
    for i in range(1, chunks + 1):
        if rng.random() < 0.2:
            yaw, ahead = float(rng.choice([-turn, 0.0, 0.0, turn])), int(rng.random() < 0.8)
        frames = session.step(Controls(np.tile((0, 0, ahead), (n, 1)), np.tile((yaw, 0, 0), (n, 1))))
        anchor = session._now.camera._anchor
        session.commit()
        reanchored += session._now.camera._anchor is not anchor
        far = max(far, float(np.linalg.norm(session._now.camera.pose[:3, 3])))
        if time.perf_counter() - begin > 60 * minutes:
            break
        if i % every == 0:
            gc.collect()
            latents = session._log.latents[-1].float()
            now = time.process_time()
            rows.append(
                (i, process.memory_info().rss, session._log.nbytes, 1e3 * (now - before) / every, frames.std(),
                 latents.abs().max().item(), latents.std().item())
            )  # fmt: skip
            before = now
    chunks = len(session._log)
    i, rss, log, cpu, contrast, largest, spread = np.array(rows).T
    half = slice(len(i) // 2, None)

    def slope(y: np.ndarray) -> float:
        return float(np.polyfit(i[half], y[half], 1)[0])

    return {
        "chunks": chunks, "frames": chunks * n, "played_s": chunks * n / engine.config.fps,
        "wall_s": time.perf_counter() - begin,
        "rss_mib_start": rss[0] / 2**20, "rss_mib_end": rss[-1] / 2**20,
        "rss_bytes_a_chunk": slope(rss), "log_bytes_a_chunk": slope(log), "rss_without_log_bytes_a_chunk": slope(rss - log),
        "cache_bytes": session._now.loop.nbytes,
        "cpu_ms_a_chunk": float(np.median(cpu)), "cpu_ms_first_tenth": float(np.median(cpu[: len(cpu) // 10])),
        "cpu_ms_last_tenth": float(np.median(cpu[-(len(cpu) // 10) :])), "cpu_ms_slope_a_1000_chunks": 1e3 * slope(cpu),
        "reanchored": reanchored, "farthest_from_anchor": far,
        "contrast_first_tenth": float(contrast[: len(i) // 10].mean()),
        "contrast_last_tenth": float(contrast[-(len(i) // 10) :].mean()),
        "largest_latent": float(largest.max()), "latent_std_first": float(spread[0]), "latent_std_last": float(spread[-1]),
        "draws_repeated": sum(a > 0 for a in session._log.attempts),
        "marks": [
            dict(zip(("chunk", "rss", "log", "cpu_ms", "contrast"), map(float, r[:5]), strict=True))
            for r in rows[:: max(1, len(rows) // MARKS)]
        ],
    }  # fmt: skip


def main() -> None:
    """Load, walk, write."""
    from worldline.recipes.assets import bundled

    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--chunks", type=int, default=10_000)
    args.add_argument("--minutes", type=float, default=float("inf"), help="stop earlier, after so long")
    args.add_argument("--world", type=Path, default=None)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--json", type=Path, required=True)
    said = args.parse_args()
    engine = Engine.load(said.world or bundled("world"), threads=said.threads)
    figures = {
        "world": engine.name, "weights": engine.weights, "dtype": engine.dtype, "threads": said.threads,
        "torch": torch.__version__, "load_average": os.getloadavg()[0], **soak(engine, said.chunks, said.minutes, said.seed),
    }  # fmt: skip
    said.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
