"""Wan on an accelerator, at full size with random weights: first frame, chunk and sustained rate, beside their floors.

    PYTHONPATH=src python -m benchmarks.gpu.wan --minutes 9
    PYTHONPATH=src python -m benchmarks.gpu.wan --device cpu --size tiny

One cell is a model, a camera mode, an execution mode and one of three ways to make a clip of 77 frames (20 latents) at
480 x 832 in chunks of 4 latents: `bidirectional` (50 guided steps over the whole clip), `ar_multistep` (50 guided steps a
chunk) and `ar_fewstep` (4 steps a chunk); decoders are cells of their own. Latency to the first chunk is given without
the autoencoder, as minWM reports it (1137 ms on an A800), and with the full and the tiny decoder. Of the long modes a few
steps are timed and multiplied; `extrapolated` says so. Every figure stands beside its floor: the operations of its matrix
products and attention over the device's peak.

Results are written after every cell and a cell that is there already is not measured again; one that fails leaves its
error. Needs torch and this package alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.functional.camera import cameras_of
from worldline.functional.masks import Visibility
from worldline.models.codec import Codec
from worldline.models.tiny_vae import TINY_VAE_VARIANTS, TinyVAE, TinyVAEConfig
from worldline.models.wan import WAN_VARIANTS, CameraMode, WanConfig, WanModel
from worldline.models.wan_vae import WAN_VAE_VARIANTS, WanVAE, WanVAEConfig
from worldline.rollout.bidirectional import sample
from worldline.rollout.graphs import Graphed
from worldline.rollout.loop import ChunkLoop
from worldline.rollout.plan import RolloutPlan
from worldline.schema import Cameras, TextEmbedding

PEAK_TFLOPS = {
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "A800": 312,
    "B200": 2250,
    "4090": 165,
}  # dense bf16, makers' figures
EXECUTIONS = ("eager", "graph", "compiled", "compiled+graph")
CAMERAS: tuple[CameraMode, ...] = ("fused", "branch")
MODES = ("ar_fewstep", "ar_multistep", "bidirectional")


@dataclass(frozen=True)
class Subject:
    """A model with the codecs and the clip it is measured on."""

    config: WanConfig
    full: WanVAEConfig
    tiny: TinyVAEConfig
    height: int = 480
    width: int = 832
    latents: int = 20  # 77 pixel frames
    chunk: int = 4
    steps: int = 50

    @property
    def grid(self) -> tuple[int, int]:
        """Latent rows and columns."""
        return self.height // self.full.spatial, self.width // self.full.spatial

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame."""
        _, ph, pw = self.config.patch_size
        return (self.grid[0] // ph) * (self.grid[1] // pw)


def _small(latent_channels: int) -> WanVAEConfig:
    return WanVAEConfig((0.0,) * latent_channels, (1.0,) * latent_channels, 8, 8, multipliers=(1, 1, 1, 1), blocks=1)


FULL = {
    "wan2.1-t2v-1.3b": Subject(
        WAN_VARIANTS["wan2.1-t2v-1.3b"], WAN_VAE_VARIANTS["wan2.1"], TINY_VAE_VARIANTS["taew2_1"]
    ),
    "wan2.2-ti2v-5b": Subject(WAN_VARIANTS["wan2.2-ti2v-5b"], WAN_VAE_VARIANTS["wan2.2"], TINY_VAE_VARIANTS["taew2_2"]),
}
TINY = {
    "tiny": Subject(
        WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=6, in_channels=4, out_channels=4),
        _small(4),
        TinyVAEConfig(latent_channels=4, encoder_width=8, decoder_widths=(8, 8, 8, 8), blocks=1),
        height=32,
        width=48,
        latents=6,
        chunk=2,
        steps=3,
    )
}


def forward_flops(subject: Subject, frames: int, keys: int, camera: CameraMode) -> float:
    """Operations of one forward of `frames` latents that see `keys` latents: products of the tokens with the weights,
    attention to past and prompt, and the camera's second attention where there is one. Embeddings and norms are not in it.
    """
    c = subject.config
    L, past = frames * subject.tokens, keys * subject.tokens
    weights = 6 * c.dim**2 + 2 * c.dim * c.ffn_dim + (c.dim**2 if camera == "branch" else 0)
    attended = past * (2 if camera == "branch" else 1) + c.text_len
    return float(c.num_layers * (2 * L * weights + 4 * L * attended * c.dim))


def cameras(frames: int, device: torch.device) -> Cameras:
    """A camera that turns and walks a little every latent."""
    angle = 0.05 * torch.arange(frames, dtype=torch.float64)
    w2c = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    w2c[:, 0, 0], w2c[:, 0, 2], w2c[:, 2, 0], w2c[:, 2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    w2c[:, 2, 3] = -0.05 * torch.arange(frames)
    return cameras_of(w2c[None].float(), torch.tensor([0.5, 0.87, 0.5, 0.5]).expand(1, frames, 4)).to(device)


class Bench:
    """A device, its clock, and how often a thing is measured."""

    def __init__(self, device: str, runs: int, peak_tflops: float | None) -> None:
        self.device = torch.device(device)
        self.cuda, self.runs = self.device.type == "cuda", runs
        name = torch.cuda.get_device_name() if self.cuda else platform.processor() or platform.machine()
        known = [tflops for part, tflops in PEAK_TFLOPS.items() if part in name]
        self.name, self.peak = name, peak_tflops or (known[0] if known else None)

    def wait(self) -> None:
        """Until the device is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def ms(self, work: Callable[[], object], runs: int | None = None) -> float:
        """Median milliseconds of `work`, after one run that does not count."""
        seen = []
        for _ in range((runs or self.runs) + 1):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            seen.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(seen[1:])

    def floor_ms(self, flops: float) -> float | None:
        """Milliseconds that `flops` operations take at the device's peak, where that is known."""
        return None if self.peak is None else 1e-9 * flops / self.peak

    def fresh(self) -> None:
        """Forget what the last cell left."""
        if self.cuda:
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory_gib(self) -> float | None:
        """Most memory that tensors took since `fresh`."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None


@torch.no_grad()
def build(config: WanConfig, bench: Bench) -> WanModel:
    """Random weights, made on the device in the compute type and laid out for inference."""
    with torch.device("meta"):
        model = WanModel(config)
    model.freeze(torch.bfloat16 if bench.cuda else torch.float32).to_empty(device=bench.device)
    for name, p in model.named_parameters():
        p.fill_(1.0) if "norm" in name and name.endswith(("weight", "qk")) else p.normal_(std=p.shape[-1] ** -0.5)
    return model


def prompt(config: WanConfig, device: torch.device) -> TextEmbedding:
    """A random prompt of full length."""
    tokens = torch.randn(1, config.text_len, config.text_dim, device=device)
    return TextEmbedding(tokens, torch.ones(1, config.text_len, dtype=torch.bool, device=device), "random")


def waits(work: Callable[[], object], bench: Bench) -> int | None:
    """How often `work` makes the host wait for the device."""
    if not bench.cuda:
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in seen)


def clip_cell(subject: Subject, camera: CameraMode, execution: str, mode: str, bench: Bench) -> dict[str, Any]:
    """One way of making the clip: milliseconds to the first chunk and of a later chunk, without the autoencoder."""
    subject = replace(subject, config=replace(subject.config, camera=camera))
    model, text = build(subject.config, bench), prompt(subject.config, bench.device)
    if "compiled" in execution:
        model.compile(fullgraph=True)
    poses = None if camera == "none" else cameras(subject.latents, bench.device)
    noise = torch.randn(1, subject.latents, subject.config.in_channels, *subject.grid, device=bench.device)
    seeded = torch.Generator(bench.device).manual_seed(0)
    with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.cuda):
        if mode == "bidirectional":
            return _whole_clip(subject, camera, model, text, noise, poses, bench)
        backbone = Graphed(model) if "graph" in execution else model
        guided = mode == "ar_multistep"
        window = Visibility(chunk=subject.chunk, window=subject.latents)
        plan = RolloutPlan.multi_step(window, subject.steps) if guided else RolloutPlan.few_step(window)
        loop = ChunkLoop(backbone, plan, text, negative=text if guided else None, cache="ring")
        steps, passes = len(plan.sigmas), 2 if guided else 1

        def chunk(start: int) -> Callable[[], Tensor]:
            frames = slice(start, start + subject.chunk)
            view = None if poses is None else poses[frames]
            if guided:  # a few steps stand for all
                few = replace(plan, sigmas=plan.sigmas[: max(2, steps // 10)])
                loop.plan = few
            return lambda: loop.denoise(noise[:, frames], view, generator=seeded)

        def flops(keys: int, count: int) -> float:
            return count * forward_flops(subject, subject.chunk, keys, camera)

        begin = time.perf_counter()
        chunk(0)()
        bench.wait()
        ready_s = time.perf_counter() - begin
        scale = steps / len(loop.plan.sigmas)
        first = scale * bench.ms(chunk(0))
        found = {
            "ready_s": ready_s,
            "first_chunk_ms": first,
            "first_chunk_floor_ms": bench.floor_ms(flops(subject.chunk, steps * passes)),
            "extrapolated": guided,
        }
        for start in range(0, subject.latents - subject.chunk, subject.chunk):
            loop.commit(
                noise[:, start : start + subject.chunk], None if poses is None else poses[start : start + subject.chunk]
            )
        last = chunk(subject.latents - subject.chunk)
        later, seen = scale * bench.ms(last), subject.latents
        view = None if poses is None else poses[-subject.chunk :]
        # A commit moves the ring on; the frames that are seen stay as many, so does the time.
        commit = bench.ms(lambda: loop.commit(noise[:, -subject.chunk :], view), runs=min(3, bench.runs))
        frames = subject.chunk * subject.full.stride
        return found | {
            "chunk_ms": later,
            "chunk_floor_ms": bench.floor_ms(flops(seen, steps * passes)),
            "commit_ms": commit,
            "commit_floor_ms": bench.floor_ms(flops(seen, passes)),
            "fps_without_decoder": 1e3 * frames / (later + commit),
            "waits_a_chunk": waits(last, bench),
            "memory_gib": bench.memory_gib(),
        }


def _whole_clip(
    subject: Subject,
    camera: CameraMode,
    model: WanModel,
    text: TextEmbedding,
    noise: Tensor,
    poses: Cameras | None,
    bench: Bench,
) -> dict[str, Any]:
    """All frames by guided steps; nothing can be shown before all are done."""
    plan = RolloutPlan.multi_step(Visibility(bidirectional=True), subject.steps)
    few = replace(plan, sigmas=plan.sigmas[:2])
    begin = time.perf_counter()
    work = lambda: sample(model, few, noise, text, negative=text, cameras=poses)  # noqa: E731
    work()
    bench.wait()
    ready_s = time.perf_counter() - begin
    clip = subject.steps / 2 * bench.ms(work, runs=1)
    flops = 2 * subject.steps * forward_flops(subject, subject.latents, subject.latents, camera)
    return {
        "ready_s": ready_s,
        "first_chunk_ms": clip,
        "first_chunk_floor_ms": bench.floor_ms(flops),
        "extrapolated": True,
        "memory_gib": bench.memory_gib(),
    }


def codec_cell(subject: Subject, decoder: str, execution: str, bench: Bench) -> dict[str, Any]:
    """Milliseconds to encode the first frame, to decode the first latent, the first chunk and a later one."""
    with torch.device(bench.device):
        codec: Codec = WanVAE(subject.full) if decoder == "full" else TinyVAE(subject.tiny)
    codec = codec.eval().requires_grad_(False)
    codec = codec.bfloat16() if bench.cuda else codec
    decode = torch.compile(codec.decode_stream) if "compiled" in execution else codec.decode_stream
    latents = torch.randn(1, subject.chunk, codec.latent_channels, *subject.grid, device=bench.device)
    frame = torch.zeros(1, 1, 3, subject.height, subject.width, device=bench.device)
    with torch.inference_mode():
        _, state = decode(latents, None)
        return {
            "encode_first_frame_ms": bench.ms(lambda: codec.encode(frame)),
            "decode_first_latent_ms": bench.ms(lambda: decode(latents[:, :1], None)),
            "decode_first_chunk_ms": bench.ms(lambda: decode(latents, None)),
            "decode_chunk_ms": bench.ms(lambda: decode(latents, state)),
            "memory_gib": bench.memory_gib(),
        }


def cells(subjects: dict[str, Subject], bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is measured, in order of worth: time may run out."""
    executions = EXECUTIONS if bench.cuda else ("eager",)
    for name, subject in subjects.items():
        for decoder in ("tiny", "full"):
            yield f"{name} | decoder {decoder} | eager", partial(codec_cell, subject, decoder, "eager", bench)
        for execution in executions:
            yield _clip(name, subject, "none", execution, "ar_fewstep", bench)
    for name, subject in subjects.items():
        for camera in CAMERAS:
            for execution in executions[:2]:
                yield _clip(name, subject, camera, execution, "ar_fewstep", bench)
        for mode in MODES[1:]:
            yield _clip(name, subject, "none", "eager", mode, bench)
    for name, subject in subjects.items():
        for camera in CAMERAS:
            for execution in executions[2:]:
                yield _clip(name, subject, camera, execution, "ar_fewstep", bench)
            for mode in MODES[1:]:
                yield _clip(name, subject, camera, "eager", mode, bench)
        for decoder in ("tiny", "full") if bench.cuda else ():
            key = f"{name} | decoder {decoder} | compiled"
            yield key, partial(codec_cell, subject, decoder, "compiled", bench)


def _clip(
    name: str, subject: Subject, camera: CameraMode, execution: str, mode: str, bench: Bench
) -> tuple[str, Callable[[], dict[str, Any]]]:
    key = f"{name} | {mode} | camera {camera} | {execution}"
    return key, lambda: clip_cell(subject, camera, execution, mode, bench)


def provenance(bench: Bench, size: str) -> dict[str, Any]:
    """Where and when."""
    here = Path(__file__).parent
    try:
        asked = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        commit = subprocess.run(asked, cwd=here, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "date": date.today().isoformat(),
        "commit": commit or os.environ.get("WORLDLINE_COMMIT", "unknown"),
        "device": bench.name,
        "peak_tflops": bench.peak,
        "torch": torch.__version__,
        "dtype": "bfloat16" if bench.cuda else "float32",
        "size": size,
        "clip": {
            name: f"{s.height}x{s.width}, {s.latents} latents, chunks of {s.chunk}, window {s.latents}, {s.steps} or 4 steps"
            for name, s in (FULL if size == "full" else TINY).items()
        },
        "weights": "random",
        "runs": bench.runs,
    }


def streams(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a viewer gets: first frame and sustained rate of every streaming cell with either decoder on the same device."""
    found = {}
    done = {key: cell for key, cell in results["cells"].items() if "error" not in cell}
    for key, cell in done.items():
        name = key.split(" | ")[0]
        for decoder in ("tiny", "full"):
            codec = done.get(f"{name} | decoder {decoder} | compiled", done.get(f"{name} | decoder {decoder} | eager"))
            if codec is None or "first_chunk_ms" not in cell:
                continue
            row = {"first_frame_ms": cell["first_chunk_ms"] + codec["decode_first_latent_ms"]}
            if "chunk_ms" in cell:
                frames = cell["fps_without_decoder"] * (cell["chunk_ms"] + cell["commit_ms"])
                row["sustained_fps"] = frames / (cell["chunk_ms"] + cell["commit_ms"] + codec["decode_chunk_ms"])
            found[f"{key} | {decoder} decoder"] = row
    return found


def write(results: dict[str, Any], out: Path) -> None:
    """JSON, whole or not at all, and a table beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.with_suffix(".tmp")
    tmp.write_text(json.dumps(results | {"streams": streams(results)}, indent=1) + "\n")
    tmp.replace(out)
    out.with_suffix(".md").write_text(markdown(results))


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "" if value is None else str(value)


def markdown(results: dict[str, Any]) -> str:
    """Tables of the clips, the decoders and the streams."""
    shown = {key: value for key, value in results.items() if key != "cells"}
    lines = ["# Wan: latency on an accelerator", "", *(f"- {key}: {value}" for key, value in shown.items())]
    cells = results["cells"]
    tables = {
        "Without the autoencoder": {k: v for k, v in cells.items() if "first_chunk_ms" in v},
        "Autoencoders": {k: v for k, v in cells.items() if "decode_chunk_ms" in v},
        "With a decoder on the same device": streams(results),
        "Failed": {k: v for k, v in cells.items() if "error" in v},
    }
    for title, rows in tables.items():
        if not rows:
            continue
        columns = list(dict.fromkeys(column for row in rows.values() for column in row if column != "cell_s"))
        lines += ["", f"## {title}", "", f"| cell | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for key, row in rows.items():
            values = (_number(row.get(column)) for column in columns)
            lines.append(f"| {key.replace(' | ', ', ')} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def measure(
    results: dict[str, Any],
    todo: Iterator[tuple[str, Callable[[], dict[str, Any]]]],
    bench: Bench,
    until: float,
    save: Callable[[], None],
) -> None:
    """Fill in the cells that are not there, till the time is up; save after every one."""
    for key, work in todo:
        if time.monotonic() > until:
            break
        if "error" not in results["cells"].get(key, {"error": ""}):
            continue
        bench.fresh()
        begin = time.perf_counter()
        try:
            cell = work()
        except Exception as error:  # the other cells are worth having
            cell = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}
        results["cells"][key] = cell | {"cell_s": time.perf_counter() - begin}
        save()


def main(argv: list[str] | None = None) -> int:
    """Measure, write JSON and a table. Returns how many cells failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--models", nargs="+", help="some of the models (default: all)")
    parser.add_argument("--only", nargs="+", default=[], help="cells whose name holds all of these words")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no cell after so long")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak, where the device is not known here")
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/DATE-gpu-wan.json; is gone on with if there"
    )
    args = parser.parse_args(argv)
    until, bench = time.monotonic() + 60 * args.minutes, Bench(args.device, args.runs, args.peak_tflops)
    subjects = FULL if args.size == "full" else TINY
    subjects = {name: subjects[name] for name in args.models or subjects}
    out = args.out or Path(__file__).parents[1] / "results" / f"{date.today().isoformat()}-gpu-wan.json"
    fresh = provenance(bench, args.size)
    old = json.loads(out.read_text()) if out.is_file() else {}
    same = all(old.get(key) == fresh[key] for key in ("commit", "device", "torch", "size", "runs"))
    results = fresh | {"cells": old["cells"] if same else {}}
    todo = ((key, work) for key, work in cells(subjects, bench) if all(word in key for word in args.only))
    measure(results, todo, bench, until, lambda: write(results, out))
    return sum("error" in cell for cell in results["cells"].values())


if __name__ == "__main__":
    raise SystemExit(main())
