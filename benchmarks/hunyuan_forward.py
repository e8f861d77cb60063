"""A quarter-width HunyuanVideo-1.5 forward on a CPU: ours against diffusers', in one paired run; and the operations of a
full-size chunk with modulation per frame, counted, beside the same with modulation per token, as published streams have it.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.hunyuan_forward

Width 512 (4 heads of 128), 4 layers, 4 x 15 x 26 latents, the same weights everywhere. A prompt is 1985 places, of which
`usual` fills 120 words and the 729 of an image, and `full` all: diffusers computes all of them and masks, we drop the empty.
`decoupled` streams past the prompt's cached keys. Every round runs every variant once, in turn; compared are medians over
rounds of the ratio of CPU times within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.wan_forward import Forward, measure, provenance, randomise, turning_cameras
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from worldline.models.backbone import TextContext
from worldline.models.hunyuan15 import HUNYUAN_VARIANTS, HunyuanModel
from worldline.nn.layers import AdaNorm
from worldline.schema import TextEmbedding

FULL = HUNYUAN_VARIANTS["hunyuan-1.5"]
QUARTER = replace(FULL, dim=512, num_heads=4, num_layers=4, ffn_dim=2048, refiner_ffn_dim=2048)
SIZE = (4, 15, 26)


def prompt(usual: bool) -> TextEmbedding:
    """Random tokens of all sources."""
    words, quoted, image = QUARTER.text_lens
    tokens = torch.randn(1, words + quoted + image, QUARTER.text_dim, generator=torch.Generator().manual_seed(2))
    tokens[:, words : words + quoted, QUARTER.byt5_dim :] = 0
    tokens[:, words + quoted :, QUARTER.image_dim :] = 0
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    if usual:
        mask[:, 120 : words + quoted] = False
    return TextEmbedding(tokens, mask)


def variants(dtype: torch.dtype, usual: bool) -> dict[str, Forward]:
    """Name -> one forward at precision `dtype`, all with the same weights and inputs."""
    from diffusers import HunyuanVideo15Transformer3DModel

    T, H, W = SIZE
    x = torch.randn(1, T, QUARTER.in_channels, H, W, generator=torch.Generator().manual_seed(1))
    sigma, text, half = torch.full((1, T), 0.5), prompt(usual), dtype == torch.bfloat16
    theirs = randomise(
        HunyuanVideo15Transformer3DModel(num_attention_heads=QUARTER.num_heads, num_layers=QUARTER.num_layers)
    )
    weights = {name: value.clone() for name, value in theirs.state_dict().items()}
    theirs.to(dtype)
    a, b, _ = QUARTER.text_lens
    given = {
        "hidden_states": torch.cat([x, torch.zeros_like(x), torch.zeros_like(x[:, :, :1])], dim=2).transpose(1, 2).to(dtype),
        "timestep": torch.tensor([500.0]).to(dtype),
        "encoder_hidden_states": text.tokens[:, :a].to(dtype),
        "encoder_attention_mask": text.mask[:, :a],
        "encoder_hidden_states_2": text.tokens[:, a : a + b, : QUARTER.byt5_dim].to(dtype),
        "encoder_attention_mask_2": text.mask[:, a : a + b],
        "image_embeds": text.tokens[:, a + b :, : QUARTER.image_dim].to(dtype),
    }  # fmt: skip

    def ours(mode: Any, camera: Any = "none") -> Forward:
        model = HunyuanModel(replace(QUARTER, text_mode=mode, camera=camera))
        randomise(model)
        model.load_state_dict(weights, strict=False)
        model.freeze(dtype)
        cameras = None if camera == "none" else turning_cameras(T)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            context = model.text_context(text)

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return model(x, sigma, context, cameras=cameras)

        return forward

    return {
        "diffusers": lambda: theirs(**given, return_dict=False)[0],
        "worldline, joint": ours("joint"),
        "worldline, decoupled": ours("decoupled"),
        "worldline, decoupled, camera fused": ours("decoupled", "fused"),
        "worldline, decoupled, camera branch": ours("decoupled", "branch"),
    }


def chunk_operations(frames: int, words: int = 512) -> dict[str, float]:
    """TFLOP of one forward of a full-size chunk at 480 x 832, `words` tokens of prompt cached: as it is, and what the same
    modulation costs where it is formed for every token."""
    with FakeTensorMode(), torch.no_grad():
        model = HunyuanModel(replace(FULL, text_mode="decoupled"))
        x, sigma = torch.randn(1, frames, FULL.in_channels, 30, 52), torch.rand(1, frames)
        keys = torch.randn(1, FULL.num_heads, words, FULL.head_dim)
        context = TextContext(((keys, keys),) * FULL.num_layers)
        with FlopCounterMode(display=False) as forward:
            model(x, sigma, context)
        tokens = frames * model.tokens_per_frame(30, 52)
        with FlopCounterMode(display=False) as more:
            AdaNorm(FULL.dim, 6)(torch.randn(1, tokens - frames, FULL.dim))
    own, other = (1e-12 * n for n in (forward.get_total_flops(), FULL.num_layers * more.get_total_flops()))
    attention = 4e-12 * tokens * (tokens + words) * FULL.dim * FULL.num_layers  # the counter knows no CPU attention
    return {
        "products_tflop": round(own, 2),
        "attention_tflop": round(attention, 2),
        "modulation_a_token_tflop": round(other, 2),
        "share_of_products": round(own / (own + other), 3),
        "share_of_chunk": round((own + attention) / (own + attention + other), 3),
    }


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--json", type=Path, help="where to write (default: benchmarks/results/DATE-hunyuan-forward.json)"
    )
    args = parser.parse_args()
    results: dict[str, Any] = {**provenance(), "latents": list(SIZE), "rounds": args.rounds}
    table = Table("precision", "prompt", "forward", "CPU ms", "x diffusers")
    for dtype in (torch.float32, torch.bfloat16):
        for usual in (True, False):
            cpu = {name: t["cpu_s"] for name, t in measure(variants(dtype, usual), args.rounds).items()}
            for name, times in cpu.items():
                ratio = statistics.median(a / b for a, b in zip(cpu["diffusers"], times, strict=True))
                row = {
                    "cpu_ms": round(1e3 * statistics.median(times), 1),
                    "times_faster_than_diffusers": round(ratio, 2),
                }
                where = (str(dtype).removeprefix("torch."), "usual" if usual else "full", name)
                results[": ".join(where)] = row
                table.add_row(*where, *(str(value) for value in row.values()))
    console = Console(width=120)
    console.print(table)
    for frames in (1, 4):
        results[f"operations, chunk of {frames}"] = counted = chunk_operations(frames)
        console.print(f"chunk of {frames}: {counted}")
    out = args.json or Path(__file__).parent / "results" / f"{results['date']}-hunyuan-forward.json"
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
