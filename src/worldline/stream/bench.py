"""How fast a world streams here: frames a second, first frames, action to pixel, and where the time goes.

The figures are flat, with fixed names; `schema` changes when the meaning of one does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from worldline.nn.quant import Scheme
from worldline.schema import Controls, WorldlineError
from worldline.stream.counts import count_chunk, graph_breaks
from worldline.stream.engine import Engine
from worldline.stream.machine import measure_rates, stamp
from worldline.stream.pacing import Pacer

SCHEMA = "worldline-bench-2"
EVENTS_PER_CHUNK = 50  # simulated inputs; more than chunks, as an input may fall anywhere within one
STARTS = 7  # sessions opened for a first-frame figure
REVISED_EVERY = 4  # chunks: one is revised, to time it; the others run as a still player's
GROUPS = {
    "streaming": (
        "fps", "realtime_factor", "native_fps", "resolution", "seconds", "chunks", "frames", "frames_per_chunk", "steps",
        "chunk_p50_ms", "chunk_p95_ms", "chunk_p99_ms",
    ),
    "stages of a chunk": (
        "denoise_p50_ms", "decode_p50_ms", "jpeg_p50_ms", "commit_p50_ms", "revise_p50_ms", "start_encode_ms", "text_ms",
    ),
    "first frames": (
        "ttff_ms", "ttff_with_text_ms", "ttff_without_decode_ms", "chunk0_denoise_ms", "ttff_cold_s", "cold_import_s",
        "cold_load_s", "load_s",
    ),
    "action to pixel": (
        "a2p_p50_ms", "a2p_p95_ms", "a2p_p99_ms", "a2p_unrevised_p50_ms", "a2p_unrevised_p95_ms", "a2p_bound_ms",
        "deadline_misses", "deadline_miss_share", "revisions_late",
    ),
    "memory": ("memory_mib", "memory_slope_kib_per_chunk", "weights_mib", "cache_mib"),
    "counted in a chunk": ("host_reads", "host_read_sites", "graph_breaks", "operations", "kernels"),
    "beside the floor": (
        "gflop_per_chunk", "peak_gflops", "memory_gb_per_s", "floor_ms", "floor_share",
    ),
    "what and where": (),
}  # fmt: skip


def bench(
    world: Engine | str | Path,
    seconds: float = 20.0,
    seed: int = 0,
    *,
    quantise: Scheme | None = None,
    encode: Callable[[np.ndarray], bytes] | None = None,
    cold: bool = False,
    counts: bool = True,
) -> dict[str, Any]:
    """Stream for about `seconds` of computing and return flat figures.

    encode: a frame to bytes as the server sends it, for the stage `jpeg`; cold: also start a fresh process (a world on disk
    only); counts: also what a chunk asks of the host, and its floor.

    fps: frames over the time of denoising, decoding and commits, of the last 70 % of the chunks; no pacing.
    ttff_ms: from asking for a session (prompt encoded before) to its first generated frames in host memory, median of 7;
    _with_text: with a prompt that was never seen; _without_decode: until the first chunk's latents are there.
    chunk0_denoise_ms: the definition that minWM's latencies are quoted in, the first chunk's denoising alone.
    ttff_cold_s: from starting a process to first frames: imports, weights, first calls. Files may be in the system's cache.
    chunk_ms: from controls to frames in host memory, without the commit, which runs while they are shown.
    a2p (action to pixel): from an input event to the due time of the first frame that depends on it. The measured compute
    times are laid on a playout at the world's frame rate under the server's own pacing rule, revisions included; events fall
    uniformly at random over it, and input changes all the time, so that every chance to revise is taken.
    JPEG, network and display are not in it. a2p_unrevised: without revisions. a2p_bound_ms: half a chunk's playout plus the
    median compute, what perfect pacing without revisions would give on average.
    deadline_misses: chunks that were not ready when the chunk before had had its time.
    memory_slope: least squares over the last 70 % of the chunks, of the process (CPU) or of tensors (accelerator).
    floor_ms: operations of a chunk over the best product measured on this machine in the compute type (bf16 or fp32, also for
    a quantised model), or its bytes over the memory's rate, whichever is longer; floor_share: floor over what a chunk takes.

    Raises WorldlineError on seconds that are not above 0, and where `cold` is asked for an engine in memory.
    """
    if seconds <= 0:
        raise WorldlineError(f"seconds {seconds}; expected above 0")
    if cold and isinstance(world, Engine):
        raise WorldlineError("a cold start of an engine in memory; expected the directory of a world, or cold=False")
    begin = time.perf_counter()
    engine = world if isinstance(world, Engine) else Engine.load(world, quantise=quantise)
    load_s = time.perf_counter() - begin
    first = _first_frames(engine, seed)
    walked = _stream(engine, seconds, seed, encode)
    steady = slice(int(0.3 * len(walked.compute)), None)
    compute, commit = np.array(walked.compute)[steady], np.array(walked.commit)[steady]
    spec, chunk_ms = engine.spec, 1e3 * compute
    revise = np.array(walked.revise or walked.compute)
    live = playout(compute, commit, revise, spec.fps, spec.frames_per_chunk, seed=seed)
    plain = playout(compute, commit, None, spec.fps, spec.frames_per_chunk, seed=seed)
    fps = spec.frames_per_chunk * len(compute) / float(compute.sum() + commit.sum())
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "fps": fps,
        "realtime_factor": fps / spec.fps,
        "native_fps": spec.fps,
        "resolution": f"{spec.width}x{spec.height}",
        "seconds": float(np.sum(walked.compute) + np.sum(walked.commit)),
        "chunks": len(compute),
        "frames": spec.frames_per_chunk * len(compute),
        "frames_per_chunk": spec.frames_per_chunk,
        "steps": spec.steps,
        **{f"chunk_p{p}_ms": float(np.percentile(chunk_ms, p)) for p in (50, 95, 99)},
        "denoise_p50_ms": median(walked.denoise[steady]),
        "decode_p50_ms": median(walked.decode[steady]),
        "jpeg_p50_ms": 1e3 * median(walked.jpeg[steady]) if walked.jpeg else None,
        "commit_p50_ms": 1e3 * float(np.median(commit)),
        "revise_p50_ms": 1e3 * float(np.median(revise)),
        **first,
        "load_s": load_s,
        **{f"a2p_p{p}_ms": 1e3 * float(np.percentile(live.latency, p)) for p in (50, 95, 99)},
        **{f"a2p_unrevised_p{p}_ms": 1e3 * float(np.percentile(plain.latency, p)) for p in (50, 95)},
        "a2p_bound_ms": 500 * spec.frames_per_chunk / spec.fps + float(np.median(chunk_ms)),
        "deadline_misses": live.missed,
        "deadline_miss_share": live.missed / len(compute),
        "revisions_late": live.late,
        "memory_mib": walked.memory[-1] / 2**20,
        "memory_slope_kib_per_chunk": _slope(walked.memory[steady]) / 1024,
        "parameters": spec.parameters,
        "weights": spec.weights,
        "world": spec.name,
        "dtype": spec.dtype,
        "quantised": spec.quantised,
    }
    if counts:
        figures |= _counted(engine, seed) | _floor(engine, float(np.median(compute) + np.median(commit)))
    if cold and not isinstance(world, Engine):
        figures |= cold_start(Path(world), spec.threads, quantise)
    return figures | stamp(engine.device)


def groups(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures under their headings, those that were not measured left out; the last takes the rest."""
    found = {
        title: {key: figures[key] for key in keys if figures.get(key) is not None} for title, keys in GROUPS.items()
    }
    known = {key for keys in GROUPS.values() for key in keys}
    found["what and where"] = {key: value for key, value in figures.items() if key not in known}
    return {title: rows for title, rows in found.items() if rows}


# -- first frames ------------------------------------------------------------------------------------------------------


def _image(engine: Engine) -> np.ndarray | None:
    return None if engine.starts else np.zeros((engine.config.height, engine.config.width, 3), np.uint8)


def _first_frames(engine: Engine, seed: int) -> dict[str, float]:
    """Milliseconds to the first generated frames of a new session, in the ways that `bench` tells apart."""
    still, image = Controls.still(engine.frames_per_chunk), _image(engine)
    whole, latents, denoise, unseen, text, encode = [], [], [], [], [], []
    for i in range(STARTS):
        begin = time.perf_counter()
        session = engine.session(image, seed=seed + i)
        session.step(still)
        spent = 1e3 * (time.perf_counter() - begin)
        whole.append(spent)
        latents.append(spent - session.timings.decode)
        denoise.append(session.timings.denoise)
        begin = time.perf_counter()
        prompt = f"a room never seen before, number {seed + i} of {time.time_ns()}"
        engine.text(prompt)
        text.append(1e3 * (time.perf_counter() - begin))
        begin = time.perf_counter()
        engine.session(image, f"{prompt} again", seed=seed + i).step(still)
        unseen.append(1e3 * (time.perf_counter() - begin))
        encode.append(_encode_ms(engine))
    return {
        "ttff_ms": median(whole),
        "ttff_with_text_ms": median(unseen),
        "ttff_without_decode_ms": median(latents),
        "chunk0_denoise_ms": median(denoise),
        "text_ms": median(text),
        "start_encode_ms": median(encode),
    }


def _encode_ms(engine: Engine) -> float:
    """Milliseconds of encoding a start image."""
    pixels = torch.zeros(1, 1, 3, engine.config.height, engine.config.width, device=engine.device)
    begin = time.perf_counter()
    with engine.compute():
        engine.codec.encode(pixels)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
    return 1e3 * (time.perf_counter() - begin)


COLD = """
import json, sys, time
begin = time.perf_counter()
from worldline.schema import Controls
from worldline.stream.engine import Engine
imported = time.perf_counter()
engine = Engine.load(sys.argv[1], threads=int(sys.argv[2]), warm=False, quantise=sys.argv[3] or None)
loaded = time.perf_counter()
image = None if engine.starts else __import__("numpy").zeros((engine.config.height, engine.config.width, 3), "uint8")
engine.session(image).step(Controls.still(engine.frames_per_chunk))
sys.stdout.write(json.dumps({"cold_import_s": imported - begin, "cold_load_s": loaded - imported}) + "\\n")
sys.stdout.flush()
"""


def cold_start(world: Path, threads: int, quantise: Scheme | None = None) -> dict[str, float]:
    """Seconds from starting a process to a world's first frames in it. Raises WorldlineError where the process fails."""
    command = [sys.executable, "-c", COLD, str(world), str(threads), quantise or ""]
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        spent = time.perf_counter() - begin
        _, errors = process.communicate()
    if process.returncode:
        raise WorldlineError(f"a fresh process could not stream {world}: {errors.strip().splitlines()[-1:]}")
    return {"ttff_cold_s": spent, **json.loads(line)}


# -- streaming ---------------------------------------------------------------------------------------------------------


@dataclass
class Walked:
    """A walk, chunk by chunk: seconds of compute, commit and JPEG, milliseconds of denoising and decoding, bytes; revise:
    seconds of the chunks that were made again."""

    compute: list[float] = field(default_factory=list)
    commit: list[float] = field(default_factory=list)
    revise: list[float] = field(default_factory=list)
    jpeg: list[float] = field(default_factory=list)
    denoise: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def _stream(engine: Engine, seconds: float, seed: int, encode: Callable[[np.ndarray], bytes] | None) -> Walked:
    """Walk and turn for `seconds`. At least as many chunks as fill the window, so that the figures are those of a long
    walk."""
    session, n, rng = engine.session(_image(engine), seed=seed), engine.frames_per_chunk, np.random.default_rng(seed)
    walked = Walked()
    stop, least = time.perf_counter() + seconds, 3 * engine.spec.window + 4

    def somewhere() -> Controls:
        yaw = float(rng.uniform(-1, 1)) * engine.config.turn_deg_per_frame
        return Controls(np.tile((0, 0, int(rng.integers(0, 2))), (n, 1)), np.tile((yaw, 0, 0), (n, 1)))

    while time.perf_counter() < stop or len(walked.compute) < least:
        begin = time.perf_counter()
        frames = session.step(somewhere())
        walked.compute.append(time.perf_counter() - begin)
        walked.denoise.append(session.timings.denoise)
        walked.decode.append(session.timings.decode)
        if len(walked.compute) % REVISED_EVERY == 0:
            begin = time.perf_counter()
            session.revise(somewhere())
            walked.revise.append(time.perf_counter() - begin)
        if encode is not None:
            begin = time.perf_counter()
            for frame in frames:
                encode(frame)
            walked.jpeg.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        session.commit()
        walked.commit.append(time.perf_counter() - begin)
        walked.memory.append(_in_use(engine.device))
    return walked


def _in_use(device: torch.device) -> float:
    """Bytes of this process, or of its tensors on an accelerator."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    import psutil

    return float(psutil.Process().memory_info().rss)


def _slope(values: list[float]) -> float:
    """Of a straight line through values one apart."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


# -- action to pixel ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Playout:
    """latency: seconds from events to the frames that answer them; missed: chunks that came after their time; late:
    revisions that came after the first frame they were meant for."""

    latency: np.ndarray
    missed: int
    late: int


def playout(
    compute: np.ndarray, commit: np.ndarray, revise: np.ndarray | None, fps: float, frames: int, seed: int = 0
) -> Playout:
    """Lay measured seconds on a playout under the pacing rule; see `bench`. revise: of revisions, drawn from in turn; None:
    none are made. Pure in its arguments."""
    pacer, now, missed, late, taken = Pacer(fps, frames), 0.0, 0, 0, 0
    shown_until = float("inf")  # of the chunk before
    latched: list[float] = []  # when input was taken, and when the first frame that shows it is due
    shown: list[float] = []
    for seconds, after in zip(compute.tolist(), commit.tolist(), strict=True):
        now = max(now, pacer.start_at())
        begin, now = now, now + seconds
        due = pacer.show(now, seconds)
        missed += now > shown_until + 1e-6
        shown_until = due[-1] + (due[1] - due[0] if frames > 1 else 1 / fps)
        latched.append(begin)
        shown.append(due[0])
        while revise is not None and (chance := pacer.revise_at(now)) is not None:
            k, now = chance
            spent = float(revise[taken % len(revise)])
            taken += 1
            begin, now = now, now + spent
            pacer.revised(spent)
            late += now > due[k]
            reached = [when for when in due[k:] if when >= now]
            if reached:  # else the next chunk answers
                latched.append(begin)
                shown.append(reached[0])
        now += after
        pacer.committed(after)
    # From the first chunk's start, as nothing plays before; no event after the last start has an answer.
    events = np.random.default_rng(seed).uniform(latched[0], latched[-1], EVENTS_PER_CHUNK * len(compute))
    return Playout(np.asarray(shown)[np.searchsorted(latched, events)] - events, missed, late)


# -- counts and floor --------------------------------------------------------------------------------------------------


def _counted(engine: Engine, seed: int) -> dict[str, Any]:
    """Operations, reads and graph breaks of a chunk on a full window."""
    still = Controls.still(engine.frames_per_chunk)
    session = engine.session(_image(engine), seed=seed)
    for _ in range(engine.config.chunks_to_fill):
        session.step(still)
    counts = count_chunk(session, still)
    return {
        "host_reads": sum(counts.reads.values()),
        "host_read_sites": dict(counts.reads),
        "graph_breaks": graph_breaks(engine),
        "operations": counts.operations,
        "kernels": counts.kernels,
    }


def _floor(engine: Engine, chunk_s: float) -> dict[str, float]:
    """Operations and bytes of a chunk beside what this machine does at best."""
    plan, rates = engine.plan(), measure_rates(engine.device, getattr(torch, engine.dtype))
    floor = plan.seconds(rates.peak, rates.memory)
    return {
        "gflop_per_chunk": plan.flops / 1e9,
        "peak_gflops": rates.peak / 1e9,
        "memory_gb_per_s": rates.memory / 1e9,
        "floor_ms": 1e3 * floor,
        "floor_share": floor / chunk_s,
        "weights_mib": plan.weight_bytes / 2**20,
        "cache_mib": plan.cache_bytes / 2**20,
    }
