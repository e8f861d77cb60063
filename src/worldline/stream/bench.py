"""How fast a world streams here: frames a second, first frame, action to pixel."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldline.schema import Controls, WorldlineError
from worldline.stream.engine import Engine
from worldline.stream.pacing import Pacer

EVENTS_PER_CHUNK = 50  # simulated inputs; more than chunks, as an input may fall anywhere within one
STARTS = 5  # sessions opened for the first-frame figure


def bench(world: Engine | str | Path, seconds: float = 20.0, seed: int = 0) -> dict[str, Any]:
    """Stream for about `seconds` of computing and return flat figures.

    fps: frames over the time of denoising, decoding and commits, of the last 70 % of the chunks; no pacing.
    ttff_ms: from asking for a session (prompt encoded before) to its first generated frames in host memory, median of 5.
    chunk_ms: from controls to frames in host memory, without the commit, which runs while they are shown.
    a2p (action to pixel): from an input event to the due time of the first frame that depends on it. The measured compute
    times are laid on a playout at the world's frame rate under the server's own pacing rule; events fall uniformly at
    random over it; an event waits for the next chunk that is started after it. JPEG, network and display are not in it.
    a2p_bound_ms: half a chunk's playout plus the median compute, what perfect pacing would give on average.
    """
    if seconds <= 0:
        raise WorldlineError(f"seconds {seconds}; expected above 0")
    begin = time.perf_counter()
    engine = world if isinstance(world, Engine) else Engine.load(world)
    load_s = time.perf_counter() - begin
    ttff = [_first_frames(engine, seed + i) for i in range(STARTS)]
    compute, commit, denoise, decode = _stream(engine, seconds, seed)
    steady = slice(int(0.3 * len(compute)), None)
    a2p = action_to_pixel(compute[steady], commit[steady], engine.spec.fps, engine.frames_per_chunk, seed)
    spec, chunk_ms = engine.spec, 1e3 * compute[steady]
    frames = spec.frames_per_chunk * len(compute[steady])
    fps = frames / float(compute[steady].sum() + commit[steady].sum())
    return {
        "fps": fps,
        "ttff_ms": 1e3 * float(np.median(ttff)),
        "a2p_p50_ms": 1e3 * float(np.percentile(a2p, 50)),
        "a2p_p95_ms": 1e3 * float(np.percentile(a2p, 95)),
        "a2p_bound_ms": 500 * spec.frames_per_chunk / spec.fps + float(np.median(chunk_ms)),
        "realtime_factor": fps / spec.fps,
        "chunk_p50_ms": float(np.percentile(chunk_ms, 50)),
        "chunk_p95_ms": float(np.percentile(chunk_ms, 95)),
        "denoise_p50_ms": float(np.median(denoise[steady])),
        "decode_p50_ms": float(np.median(decode[steady])),
        "commit_p50_ms": 1e3 * float(np.median(commit[steady])),
        "load_s": load_s,
        "chunks": len(chunk_ms),
        "frames": frames,
        "frames_per_chunk": spec.frames_per_chunk,
        "steps": spec.steps,
        "native_fps": spec.fps,
        "resolution": f"{spec.width}x{spec.height}",
        "parameters": spec.parameters,
        "weights": spec.weights,
        "dtype": spec.dtype,
        **hardware(engine),
    }


def _first_frames(engine: Engine, seed: int) -> float:
    """Seconds to the first generated frames of a new session."""
    begin = time.perf_counter()
    image = None if engine.starts else np.zeros((engine.config.height, engine.config.width, 3), np.uint8)
    engine.session(image, seed=seed).step(Controls.still(engine.frames_per_chunk))
    return time.perf_counter() - begin


def _stream(engine: Engine, seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Walk and turn for `seconds`: per chunk compute and commit seconds, denoise and decode milliseconds. At least as
    many chunks as fill the window, so that the figures are those of a long walk."""
    image = None if engine.starts else np.zeros((engine.config.height, engine.config.width, 3), np.uint8)
    session, n, rng = engine.session(image, seed=seed), engine.frames_per_chunk, np.random.default_rng(seed)
    rows: list[tuple[float, float, float, float]] = []
    stop, least = time.perf_counter() + seconds, 3 * engine.spec.window + 4
    while time.perf_counter() < stop or len(rows) < least:
        yaw = float(rng.uniform(-1, 1)) * engine.config.turn_deg_per_frame
        controls = Controls(np.tile((0, 0, int(rng.integers(0, 2))), (n, 1)), np.tile((yaw, 0, 0), (n, 1)))
        begin = time.perf_counter()
        session.step(controls)
        ready = time.perf_counter()
        session.commit()
        rows.append((ready - begin, time.perf_counter() - ready, session.timings.denoise, session.timings.decode))
    compute, commit, denoise, decode = np.array(rows).T
    return compute, commit, denoise, decode


def action_to_pixel(compute: np.ndarray, commit: np.ndarray, fps: float, frames: int, seed: int = 0) -> np.ndarray:
    """Seconds from simulated input events to the frames that answer them; see `bench`. Pure in its arguments."""
    pacer, now = Pacer(fps, frames), 0.0
    started, shown = [], []
    for seconds, after in zip(compute.tolist(), commit.tolist(), strict=True):
        now = max(now, pacer.start_at())
        started.append(now)
        now += seconds
        shown.append(pacer.show(now, seconds)[0])
        now += after
    # From the second chunk, as nothing plays before the first; no event after the last chunk's start has an answer.
    events = np.random.default_rng(seed).uniform(started[0], started[-1], EVENTS_PER_CHUNK * len(started))
    return np.asarray(shown)[np.searchsorted(started, events)] - events


def hardware(engine: Engine) -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    device = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": load,  # of the last minute: above `cores`, the figures are those of a busy machine
        "torch": torch.__version__,
    }
