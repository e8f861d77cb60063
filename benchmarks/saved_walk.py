"""How large a saved walk is and how long it takes to load, with its latents and without.

    OMP_NUM_THREADS=1 python -m benchmarks.saved_walk                  a minute of the bundled world
    python -m benchmarks.saved_walk --model runs/nano-demo --seconds 10

Seconds are of the clock and of the processor: on a busy machine the second says more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from worldline.cli.play import find_world
from worldline.schema import Controls
from worldline.stream.engine import Engine
from worldline.stream.session import Session


def main() -> None:
    """Walk, save both ways, load both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="WORLD", help="world or run directory (default: the bundled world)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the walk's own time")
    args = parser.parse_args()
    engine = Engine.load(find_world(args.model), threads=1)
    n, rng = engine.frames_per_chunk, np.random.default_rng(0)
    session, begin = engine.session(), (time.perf_counter(), time.process_time())
    chunks = round(args.seconds * engine.config.fps / n)
    for _ in range(chunks):
        move, turn = rng.integers(-1, 2, 3) * (1, 0, 1), rng.integers(-1, 2) * engine.config.turn_deg_per_frame
        session.step(Controls(np.tile(move, (n, 1)), np.tile((turn, 0, 0), (n, 1))))
        session.commit()
    table = Table("", "bytes", "of the ring", "s", "CPU s")
    table.add_row(f"walking {chunks} chunks", "", "", *_since(begin))
    ring, wanted = engine.plan().cache_bytes, session.log.digest()
    with tempfile.TemporaryDirectory() as folder:
        for latents in (False, True):
            path = Path(folder) / "walk"
            session.save(path, latents=latents)
            begin = (time.perf_counter(), time.process_time())
            again = Session.load(engine, path)
            spent = _since(begin)
            if again.log.digest() != wanted:
                raise SystemExit("the loaded walk is another one")
            size = path.stat().st_size
            name = "loading, with latents" if latents else "loading, without"
            table.add_row(name, f"{size:,}", f"{size / ring:.2%}", *spent)
    Console().print(table)


def _since(begin: tuple[float, float]) -> tuple[str, str]:
    return f"{time.perf_counter() - begin[0]:.1f}", f"{time.process_time() - begin[1]:.1f}"


if __name__ == "__main__":
    main()
