"""A quarter-width Wan forward on a CPU: ours against diffusers', and what a camera adds, in one paired run.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.wan_forward

Width 384 (3 heads of 128), 4 layers, 4 x 30 x 52 latents, a prompt of 512 tokens, the same weights everywhere. `as streamed`
is a model that was frozen, with the clock, rotations and cameras of its chunk formed before, as in every step of play.
Every round runs every variant once, in turn, so that a machine's moods fall on all alike. Compared are medians over rounds
of the CPU time of the process, and of the ratio to the reference in the same round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from worldline.functional.camera import cameras_of
from worldline.models.wan import WanConfig, WanModel
from worldline.schema import Cameras, TextEmbedding

QUARTER = WanConfig(dim=384, ffn_dim=2240, num_heads=3, num_layers=4, text_dim=1024, text_len=512)
FP32_PARTS = ("condition_embedder.time", "condition_embedder.motion", "condition_embedder.action", "camera_embedder")
Forward = Callable[[], Tensor]


def randomise(model: nn.Module) -> nn.Module:
    """Small random weights everywhere, zero-initialised heads and branches too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[-1])
            p.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval().requires_grad_(False)


def bf16_weights(model: WanModel) -> WanModel:
    """Weights of matrix products in bf16, for use under autocast: the values autocast would round at every call. The clock,
    norms and modulation stay fp32."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv3d)) and not name.startswith(FP32_PARTS):
            module.bfloat16()
    return model


def turning_cameras(frames: int, device: torch.device | str = "cpu") -> Cameras:
    """A camera that turns and walks a little every latent frame."""
    angle = 0.05 * torch.arange(frames, dtype=torch.float64)
    w2c = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    w2c[:, 0, 0], w2c[:, 0, 2], w2c[:, 2, 0], w2c[:, 2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    w2c[:, 2, 3] = -0.05 * torch.arange(frames)
    K = torch.tensor([0.5, 0.87, 0.5, 0.5]).expand(1, frames, 4)
    return cameras_of(w2c[None].float(), K).to(device)


def variants(size: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Forward]:
    """Name -> one forward at velocity precision `dtype`, all with the same weights and inputs. size: latent T, H, W."""
    from diffusers import WanTransformer3DModel

    T, H, W = size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, T, QUARTER.in_channels, H, W, generator=generator)
    text = torch.randn(1, QUARTER.text_len, QUARTER.text_dim, generator=generator)
    sigma, half = torch.full((1, T), 0.5), dtype == torch.bfloat16
    theirs = randomise(
        WanTransformer3DModel(
            num_attention_heads=QUARTER.num_heads,
            attention_head_dim=QUARTER.head_dim,
            text_dim=QUARTER.text_dim,
            ffn_dim=QUARTER.ffn_dim,
            num_layers=QUARTER.num_layers,
        )
    )
    weights = {name: value.clone() for name, value in theirs.state_dict().items()}
    theirs.to(dtype)
    clip, prompt = x.transpose(1, 2).to(dtype), text.to(dtype)
    clock = torch.full((1, T * H * W // 4), 500.0)

    def diffusers(timestep: Tensor) -> Forward:
        return lambda: theirs(clip, timestep, prompt, return_dict=False)[0].transpose(1, 2).float()

    def ours(camera: Any, streamed: bool = False) -> Forward:
        model = randomise(WanModel(replace(QUARTER, camera=camera)))
        model.load_state_dict(weights, strict=False)
        if streamed:
            model.freeze(dtype)
        elif half:
            bf16_weights(model)
        cameras = None if camera == "none" else turning_cameras(T)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            context = model.text_context(TextEmbedding(text, torch.ones(1, QUARTER.text_len, dtype=torch.bool), ""))
            ready = model.conditions([0.5], x, cameras, 0)[0] if streamed else None

        def forward() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return model(x, sigma, context, cameras=cameras, conditions=ready)

        return forward

    named = {"diffusers, a timestep a token": diffusers(clock), "diffusers, a timestep a clip": diffusers(clock[0, :1])}
    named |= {f"worldline, camera {camera}": ours(camera) for camera in ("none", "fused", "branch")}
    return named | {f"worldline, camera {camera}, as streamed": ours(camera, True) for camera in ("none", "fused")}


@torch.no_grad()
def measure(forwards: dict[str, Forward], rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU and wall seconds of every forward, a figure a round; one round more goes unrecorded."""
    seen: dict[str, dict[str, list[float]]] = {name: {"cpu_s": [], "wall_s": []} for name in forwards}
    for i in range(rounds + 1):
        for name, forward in forwards.items():
            cpu, wall = time.process_time(), time.perf_counter()
            forward()
            if i:
                seen[name]["cpu_s"].append(time.process_time() - cpu)
                seen[name]["wall_s"].append(time.perf_counter() - wall)
    return seen


def commit_here() -> str:
    """The commit of the checkout, `+` if it has changes, or `unknown`."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=here, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def provenance() -> dict[str, Any]:
    """Where and when: the fields every result file opens with."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "date": date.today().isoformat(),
        "commit": commit_here(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, nargs=3, default=(4, 30, 52), metavar=("T", "H", "W"), help="latent grid")
    parser.add_argument("--json", type=Path, help="where to write (default: benchmarks/results/DATE-wan-forward.json)")
    args = parser.parse_args()
    results: dict[str, Any] = {**provenance(), "latents": list(args.size), "rounds": args.rounds}
    table = Table(
        "precision", "forward", "CPU ms", "wall ms", "x diffusers (clip)", "x diffusers (token)", "x no camera"
    )
    for dtype in (torch.float32, torch.bfloat16):
        seen = measure(variants(tuple(args.size), dtype), args.rounds)
        cpu = {name: times["cpu_s"] for name, times in seen.items()}
        token, clip, plain, *_ = cpu.values()

        def ratio(a: list[float], b: list[float]) -> float:
            return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)

        for name, times in cpu.items():
            row = {
                "cpu_ms": round(1e3 * statistics.median(times), 1),
                "wall_ms": round(1e3 * statistics.median(seen[name]["wall_s"]), 1),
                "times_faster_than_diffusers_clip": ratio(clip, times),
                "times_faster_than_diffusers_token": ratio(token, times),
                "cost_over_no_camera": ratio(times, plain),
            }
            precision = str(dtype).removeprefix("torch.")
            results[f"{precision}: {name}"] = row
            table.add_row(precision, name, *(str(value) for value in row.values()))
    Console(width=140).print(table)
    out = args.json or Path(__file__).parent / "results" / f"{results['date']}-wan-forward.json"
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
