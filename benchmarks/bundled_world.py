"""How well a world follows its controls and the truth: the bundled one, or any other, on maps that no training used.

    python -m benchmarks.bundled_world --media docs/media

Writes the figures of `worldline.evaluate.suite` with hardware, date and commit, and on request a contact sheet (truth beside
model) and a short walk through three start images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from worldline.evaluate.episodes import build_episodes
from worldline.evaluate.films import contact_sheet
from worldline.evaluate.player import Player
from worldline.evaluate.suite import Evaluation, evaluate_player
from worldline.models.registry import load_model
from worldline.models.text import HashTextEncoder
from worldline.recipes.assets import bundled
from worldline.recipes.cards import hardware
from worldline.schema import Controls
from worldline.stream.engine import Engine
from worldline.stream.record import write_mp4
from worldline.stream.world import WorldConfig

ROUTE = ((0.0, 1.0, 5), (2.0, 0.0, 4), (0.0, 1.0, 3), (-2.0, 1.0, 5))  # yaw a frame, walking, chunks


def measure(world: Path, count: int, cache: Path) -> Evaluation:
    """The suite on `count` spins and walks, rendered into `cache` once."""
    config = WorldConfig.read(world)
    codec = load_model(world / config.codec)
    player = Player(load_model(world), codec, HashTextEncoder(), config.plan, config.move_scale)
    return evaluate_player(player, build_episodes(cache, count, 0), 0)


def film(world: Path, starts: tuple[int, ...] = (2, 4, 7)) -> list[np.ndarray]:
    """The route from some of the world's start images, as it is streamed."""
    engine, frames = Engine.load(world), []
    for start in starts:
        session = engine.session(list(engine.starts)[start], seed=1)
        frames += [session.first_frame] * 4
        for yaw, ahead, chunks in ROUTE:
            controls = Controls(move=np.tile([0.0, 0.0, ahead], (4, 1)), look=np.tile([yaw, 0.0, 0.0], (4, 1)))
            for _ in range(chunks):
                frames += list(session.step(controls))
    return frames


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--world", type=Path, default=bundled("world"), help="a world directory (default: the bundled one)"
    )
    parser.add_argument(
        "--episodes", type=int, default=16, help="of each suite, on as many held-out maps (default: 16)"
    )
    parser.add_argument("--cache", type=Path, help="where rendered episodes are kept (default: nowhere)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file")
    parser.add_argument("--media", type=Path, help="folder for bundled-world.png and bundled-world.mp4")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(args.world, args.episodes, args.cache or Path(scratch))
    table = Table("figure", "value")
    for key, value in found.metrics.items():
        table.add_row(key, f"{value:.3f}")
    Console().print(table)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    stamp = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "command": f"python -m benchmarks.bundled_world --episodes {args.episodes}",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{stamp['date']}-bundled-world.json"
    path.write_text(json.dumps({**stamp, **found.metrics}, indent=1) + "\n")
    if args.media is not None:
        sheet = contact_sheet([(label, frames[:49]) for label, frames in found.films], 4, 2)
        white = sheet.copy()
        white.paste((255, 255, 255, 255), (0, 0, *sheet.size))
        white.alpha_composite(sheet)
        white.convert("RGB").save(args.media / "bundled-world.png", optimize=True)
        write_mp4(film(args.world), args.media / "bundled-world.mp4", scale=4)


if __name__ == "__main__":
    main()
