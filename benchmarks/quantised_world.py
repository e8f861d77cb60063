"""What 8-bit layers do to a world, on long walks: the same starts, controls and noise in fp32, bf16, int8 and fp8.

    python -m benchmarks.quantised_world

Errors compound where a model reads what it wrote, so each form is walked in two ways. `forced`: every chunk is made on the
fp32 walk's past, and its distance to the fp32 chunk is the form's own error; it must not grow as keys and values of the
form's own replace each other. `free`: every form lives on its own past, for minutes; walks then part for the faintest
cause, so bf16 beside fp32 says how far apart two equally good walks are, and what counts is whether the view still follows
its controls and keeps its level.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from worldline.control.camera import CameraIntegrator
from worldline.evaluate.episodes import Episode, build_episodes
from worldline.evaluate.fidelity import psnr
from worldline.evaluate.player import Player, to_uint8
from worldline.evaluate.response import by_latent, control_response
from worldline.evaluate.suite import LATENT_LAGS, evaluate_player
from worldline.evaluate.yaw import yaw_between
from worldline.functional.camera import cameras_of_path
from worldline.models.registry import load_codec, load_model
from worldline.models.text import HashTextEncoder
from worldline.models.wan import WanModel
from worldline.nn.quant import SKIP, quantise, weight_bytes
from worldline.recipes.assets import bundled
from worldline.recipes.cards import hardware
from worldline.rollout.loop import ChunkLoop
from worldline.schema import CameraPath, Cameras, Controls, TextEmbedding
from worldline.stream.moment import REANCHOR_AT
from worldline.stream.world import WorldConfig, read_starts

FORMS = ("float32", "bfloat16", "int8", "fp8")
HELD = 6  # chunks that a command lasts
KEPT_METRICS = ("yaw_corr", "yaw_gain", "yaw_lag_frames", "yaw_corr_latent", "yaw_gain_latent", "psnr_1s")


@dataclass(frozen=True)
class Walks:
    """What all forms are given. latents: of the starts [B, 1, C, H, W]; noise: [chunks, B, n, C, H, W]; controls: of every
    start, by chunk; cameras: of every chunk, with the motion [B, 4, 4] that moves the cached world after it."""

    config: WorldConfig
    latents: Tensor
    noise: Tensor
    controls: list[list[Controls]]
    cameras: list[tuple[Cameras, Tensor | None]]
    captions: list[str]


def commands(config: WorldConfig, chunks: int, frames: int, seed: int) -> list[Controls]:
    """Turns of either side, none and half, with steps ahead and back: pseudo-random, each for some chunks. Who walks on and on
    leaves every room, as nothing stops him, and a world of fog follows no command in any format."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < chunks:
        turn = float(rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0])) * config.turn_deg_per_frame
        ahead = int(rng.choice([-1, 0, 0, 0, 1]))
        one = Controls(np.tile((0, 0, ahead), (frames, 1)), np.tile((turn, 0, 0), (frames, 1)))
        found += [one] * int(rng.integers(1, HELD + 1))
    return found[:chunks]


def prepare(world: Path, chunks: int, count: int, seed: int) -> tuple[Walks, Any]:
    """The walks from the first `count` start images of a world, and its codec in fp32."""
    config = WorldConfig.read(world)
    codec = load_codec(world / config.codec)
    starts = dict(list(read_starts(world / config.starts, config.height, config.width).items())[:count])
    pixels = torch.from_numpy(np.stack([s.image for s in starts.values()])).permute(0, 3, 1, 2)[:, None].float()
    with torch.no_grad():
        latents = codec.encode(pixels / 127.5 - 1).float()
    n = config.visibility.chunk
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chunks, len(starts), n, *latents.shape[2:], generator=generator)
    frames = n * codec.grid.stride
    controls = [commands(config, chunks, frames, seed + i) for i in range(len(starts))]
    walkers = [CameraIntegrator(config.intrinsics, config.move_scale, config.walk_units_per_frame) for _ in starts]
    cameras = []
    for i in range(chunks):
        paths = [_path(w, rows[i], codec.grid.stride) for w, rows in zip(walkers, controls, strict=True)]
        far = max(float(np.linalg.norm(w.pose[:3, 3])) for w in walkers) > REANCHOR_AT
        motion = torch.from_numpy(np.stack([w.rebase() for w in walkers])).float() if far else None
        cameras.append((Cameras.cat(paths), motion))
    return Walks(config, latents, noise, controls, cameras, [s.caption for s in starts.values()]), codec


def _path(walker: CameraIntegrator, controls: Controls, stride: int) -> Cameras:
    """The cameras of a chunk's latents, with their motion from the one before."""
    before, path = walker.pose[None], walker.extend(controls)[stride - 1 :: stride]
    whole = CameraPath(np.concatenate([before, path.c2w]), np.concatenate([path.K[:1], path.K]))
    return cameras_of_path(whole)[1:]


def load(world: Path, form: str) -> tuple[WanModel, int]:
    """The world's model in a form, still to be frozen, and the bytes of its weights."""
    model = load_model(world)
    assert isinstance(model, WanModel)
    scheme, _, rest = form.partition(" ")
    if scheme in ("int8", "fp8"):
        outer = ("blocks.0.*", f"blocks.{model.config.num_layers - 1}.*") if rest else ()
        quantise(model, scheme, (*SKIP, *outer))  # type: ignore[arg-type]
    return model, weight_bytes(model) * (2 if form == "float32" else 1)


def walk(
    model: WanModel, walks: Walks, text: TextEmbedding, *, bf16: bool, past: list[Tensor] | None
) -> Iterator[Tensor]:
    """Latents [B, n, C, H, W] of every chunk; past: what is written into the past instead of them."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loop = ChunkLoop(model, walks.config.plan, text, cache="ring")
        camera = CameraIntegrator(walks.config.intrinsics, walks.config.move_scale, walks.config.walk_units_per_frame)
        at_start = cameras_of_path(CameraPath(camera.pose[None], camera.K)).tile(batch=len(walks.latents))
        loop.commit(walks.latents, at_start)
        for i, (cameras, motion) in enumerate(walks.cameras):
            generator = torch.Generator().manual_seed(i)
            x0 = loop.denoise(walks.noise[i], cameras, generator=generator).float()
            yield x0.clone()
            loop.commit(x0 if past is None else past[i], cameras)
            if motion is not None and model.reanchors:
                loop.reanchor(motion)


@torch.inference_mode()
def films(codec: Any, walks: Walks, chunks: list[Tensor]) -> np.ndarray:
    """Frames uint8 [B, 1 + chunks n, H, W, 3] of latents, in fp32 for every form."""
    video, state = codec.decode_stream(walks.latents, None)
    shown = [to_uint8(video)]
    for latents in chunks:
        video, state = codec.decode_stream(latents, state)
        shown.append(to_uint8(video))
    return np.concatenate(shown, axis=1)


def followed(walks: Walks, frames: np.ndarray) -> dict[str, float]:
    """How the view of the walks follows its commands, over all and over the last quarter."""
    commands = [np.concatenate([c.look[:, 0] for c in rows]) for rows in walks.controls]
    shown = [yaw_between(film, walks.config.intrinsics) for film in frames]
    found = {}
    for name, start in (("", 0), ("_last_quarter", len(commands[0]) * 3 // 4)):
        asked, turned = [c[start:] for c in commands], [s[start:] for s in shown]
        fine = control_response(asked, turned)
        coarse = control_response([by_latent(c, 4) for c in asked], [by_latent(s, 4) for s in turned], LATENT_LAGS)
        found |= {f"yaw_corr{name}": fine.corr, f"yaw_gain{name}": fine.gain, f"yaw_corr_latent{name}": coarse.corr}
    return found


def distance(a: list[Tensor], b: list[Tensor]) -> np.ndarray:
    """|a - b| / |b| of every chunk, all starts together."""
    return np.array([float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True)])


def measure(
    world: Path, chunks: int, starts: int, episodes: list[Episode], seed: int, console: Console
) -> dict[str, Any]:
    """Every form, by name."""
    walks, codec = prepare(world, chunks, starts, seed)
    fps, found = walks.config.fps, {}
    exact: list[Tensor] = []
    reference = np.zeros(0)
    for form in FORMS:
        bf16 = form != "float32"
        model, size = load(world, form)
        words = HashTextEncoder(model.config.text_dim, model.config.text_len)
        text = words.encode(walks.captions)
        row: dict[str, Any] = {"weights_bytes": size}
        if episodes:
            # Layers as they are before they are laid out for inference: the suite's own batches.
            player = Player(model, codec, words, walks.config.plan, walks.config.move_scale, bf16=bf16)
            metrics = evaluate_player(player, episodes, 0).metrics
            row |= {f"suite_{key}": metrics[key] for key in KEPT_METRICS if key in metrics}
        model.freeze(torch.bfloat16 if bf16 else torch.float32)
        free = list(walk(model, walks, text, bf16=bf16, past=None))
        frames = films(codec, walks, free)
        row |= followed(walks, frames)
        if form == "float32":
            exact, reference = free, frames
        forced = distance(list(walk(model, walks, text, bf16=bf16, past=exact)), exact)
        row["forced_error"] = float(forced.mean())
        row["forced_error_first_tenth"] = float(forced[: len(forced) // 10].mean())
        row["forced_error_last_tenth"] = float(forced[-(len(forced) // 10) :].mean())
        apart, dB = distance(free, exact), psnr(frames, reference).mean(axis=0)
        for seconds in (1, 5, 20, 50):
            if (frame := round(seconds * fps)) < len(dB):
                row[f"free_psnr_{seconds}s"] = float(dB[frame - 7 : frame + 1].mean())
                row[f"free_error_{seconds}s"] = float(apart[min(frame // 4, len(apart)) - 1])
        last = frames[:, -round(10 * fps) :].astype(np.float32)
        row["brightness_last_10s"], row["contrast_last_10s"] = float(last.mean()), float(last.std(axis=(2, 3)).mean())
        found[form] = {key: round(value, 5) for key, value in row.items()}
        console.print(form, found[form])
        del model
        gc.collect()
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=bundled("world"), help="a world directory of the nano line")
    parser.add_argument(
        "--chunks", type=int, default=240, help="of every walk (default: 240, a minute of the bundled world)"
    )
    parser.add_argument(
        "--episodes", type=int, default=8, help="of each control suite; 0 leaves the suites out (default: 8)"
    )
    parser.add_argument("--starts", type=int, default=4, help="walks, from as many start images (default: 4)")
    parser.add_argument("--cache", type=Path, help="where rendered episodes are kept (default: nowhere)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        episodes = build_episodes(args.cache or Path(scratch), args.episodes, 0) if args.episodes else []
        found = measure(args.world, args.chunks, args.starts, episodes, args.seed, console)
    table = Table("figure", *found)
    for key in next(iter(found.values())):
        table.add_row(key, *(f"{row[key]:.4g}" for row in found.values()))
    console.print(table)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    result = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "command": f"python -m benchmarks.quantised_world --chunks {args.chunks} --starts {args.starts} "
        f"--episodes {args.episodes}",
        "forms": found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{result['date']}-quantised-world.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
