"""Memory of a distribution-matching rollout's backward against its number of chunks: one backward, and chunk by chunk.

    OMP_NUM_THREADS=1 python -m benchmarks.chunkwise_memory

The student is the nano backbone with random weights; a clip of one given latent and n generated ones, frame by frame, two
steps, window 2. Counted are the bytes of all tensors alive at the peak of rollout and backward, less the gradients of weights,
which are the same. That both give the same gradients is checked first.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.wan_forward import provenance, turning_cameras
from rich.console import Console
from tests.live_bytes import LiveBytes

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.dmd import DMDConfig
from worldline.models.wan import WAN_VARIANTS, WanModel
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, TextEmbedding

CHUNKS = (4, 8, 16, 32)
CONFIG = replace(WAN_VARIANTS["nano"], camera="fused", motion=True)


def rolled(model: WanModel, chunks: int, chunkwise: bool) -> tuple[float, float, list[torch.Tensor]]:
    """(MiB at the peak, CPU seconds, gradients) of a rollout of `chunks` chunks and its backward."""
    torch.manual_seed(0)
    text = TextEmbedding(torch.randn(1, CONFIG.text_len, CONFIG.text_dim), torch.ones(1, CONFIG.text_len).bool(), "")
    batch = LatentBatch(torch.randn(1, chunks + 1, CONFIG.in_channels, 8, 12), text, turning_cameras(chunks + 1))
    plan = RolloutPlan.few_step(Visibility(1, window=2, prefix=1), 2)
    method = DMDConfig(chunkwise_backward=chunkwise).build(model, model, model, plan, text)
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    with LiveBytes() as memory, torch.autocast("cpu", torch.bfloat16):
        loss = method.rollout(batch, Rng(0, 1), grad=True).square().mean()
        loss.backward()
    seconds = time.process_time() - start
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return (memory.peak - sum(g.nbytes for g in gradients)) / 2**20, seconds, gradients


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write (default: benchmarks/results/DATE-chunkwise.json)")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = WanModel(CONFIG)
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.02)  # a silent head would leave everything before it without gradients
    results: dict[str, Any] = {**provenance(), "backbone": "nano", "chunks": {}}
    console = Console(highlight=False)
    for chunks in CHUNKS:
        (plain, slow, want), (little, slower, found) = (rolled(model, chunks, chunkwise) for chunkwise in (False, True))
        off = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(found, want, strict=True))
        if off > 0.05:
            raise SystemExit(f"{chunks} chunks: gradients differ by {off:.1e} under bf16; nothing was measured")
        row = {"plain_mib": round(plain, 1), "chunkwise_mib": round(little, 1), "times_less": round(plain / little, 2)}
        results["chunks"][chunks] = {**row, "times_the_cpu_seconds": round(slower / slow, 2), "gradients_differ": off}
        console.print(
            f"{chunks:3} chunks: {plain:7.1f} MiB, chunk by chunk {little:6.1f} MiB, {plain / little:.1f}x less"
        )
    out = args.json or Path(__file__).parent / "results" / f"{results['date']}-chunkwise.json"
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
