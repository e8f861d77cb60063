"""A teacher-forcing training step on a CPU: attention that computes what the mask lets through, against one dense mask.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.teacher_forcing

The whole step is timed: forward over [clean | noisy], loss, backward, AdamW. Both sides are the same model, weights, batch and
optimizer; they differ in `attention="blocks"` (ours) or `"dense"` (one call of PyTorch's SDPA under the mask over all tokens).
Every round runs both in turn, so that a machine's moods fall on both alike; the order changes every round. Compared are medians
over rounds of the process's CPU time, and of the ratio within a round. That both learn the same is checked first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
from benchmarks.wan_forward import QUARTER, provenance, turning_cameras
from rich.console import Console
from rich.table import Table

from worldline.functional.flow import add_noise, velocity
from worldline.functional.losses import flow_matching_loss
from worldline.functional.masks import Visibility
from worldline.models.wan import WAN_VARIANTS, WanConfig, WanModel
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import TextEmbedding

Backend = Literal["blocks", "dense"]
Step = Callable[[], float]
# Name -> backbone, latents [B, T, H, W], who sees whom.
CASES: dict[str, tuple[WanConfig, tuple[int, int, int, int], Visibility]] = {
    "nano, 12 latents of 24 tokens, chunks of 1": (
        replace(WAN_VARIANTS["nano"], camera="fused", motion=True),
        (2, 12, 8, 12),
        Visibility(chunk=1, window=12, prefix=1),
    ),
    "quarter-width Wan, 20 latents of 96 tokens, chunks of 4": (
        replace(QUARTER, num_layers=1, text_len=64, camera="fused"),
        (1, 20, 16, 24),
        Visibility(chunk=4),
    ),
    "quarter-width Wan, 4 latents of 1560 tokens (480x832), chunks of 1": (
        replace(QUARTER, num_layers=1, camera="fused"),
        (1, 4, 60, 104),
        Visibility(chunk=1),
    ),
}


def make_step(case: str, backend: Backend, half: bool) -> tuple[WanModel, Step]:
    """The model of a case, and one training step of it that returns the loss."""
    config, (B, T, H, W), visibility = CASES[case]
    torch.manual_seed(0)
    model = WanModel(config)
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.02)  # a silent head would leave everything before it without gradients
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    x0, eps = torch.randn(2, B, T, config.in_channels, H, W)
    sigma = torch.rand(B, T)
    text = TextEmbedding(torch.randn(B, config.text_len, config.text_dim), torch.ones(B, config.text_len).bool(), "")
    cameras = turning_cameras(T).tile(batch=B)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            context = model.text_context(text)
            v = teacher_forced_velocity(
                model,
                x0,
                add_noise(x0, eps, sigma),
                sigma,
                context,
                cameras=cameras,
                visibility=visibility,
                attention=backend,
            )
            loss = flow_matching_loss(v, velocity(x0, eps))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return model, step


def measure(case: str, half: bool, rounds: int) -> dict[str, Any]:
    """Medians of both sides and of their ratio; one round more goes unrecorded, and shows that both learn the same."""
    sides: dict[str, Step] = {b: make_step(case, b, half)[1] for b in ("blocks", "dense")}  # type: ignore[arg-type]
    first = {name: step() for name, step in sides.items()}
    if abs(first["blocks"] - first["dense"]) > (5e-3 if half else 1e-5) * first["dense"]:
        raise SystemExit(f"{case}: losses differ, {first}; nothing was measured")
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in sorted(sides, reverse=bool(i % 2)):
            start = time.process_time(), time.perf_counter()
            sides[name]()
            cpu[name].append(time.process_time() - start[0])
            wall[name].append(time.perf_counter() - start[1])
    ratios = [dense / blocks for dense, blocks in zip(cpu["dense"], cpu["blocks"], strict=True)]
    return {
        "rounds": rounds,
        "blocks_cpu_ms": round(1e3 * statistics.median(cpu["blocks"]), 1),
        "dense_cpu_ms": round(1e3 * statistics.median(cpu["dense"]), 1),
        "blocks_wall_ms": round(1e3 * statistics.median(wall["blocks"]), 1),
        "dense_wall_ms": round(1e3 * statistics.median(wall["dense"]), 1),
        "times_faster": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="cases whose name and precision hold this text; others stay in the file",
    )
    parser.add_argument(
        "--json", type=Path, help="where to write (default: benchmarks/results/DATE-teacher-forcing.json)"
    )
    args = parser.parse_args()
    out = args.json or Path(__file__).parent / "results" / f"{date.today().isoformat()}-teacher-forcing.json"
    kept = json.loads(out.read_text())["cases"] if args.only and out.is_file() else {}
    results: dict[str, Any] = {**provenance(), "cases": kept}
    table = Table("case", "precision", "ours, CPU ms", "dense mask, CPU ms", "times faster", "least", "most")
    for case in CASES:
        for half in (False, True):
            precision = "bf16" if half else "fp32"
            if args.only not in f"{case}, {precision}":
                continue
            row = results["cases"][f"{case}, {precision}"] = measure(case, half, args.rounds)
            figures = (row[k] for k in ("blocks_cpu_ms", "dense_cpu_ms", "times_faster", "least", "most"))
            table.add_row(case, precision, *(str(figure) for figure in figures))
    Console(width=140).print(table)
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
