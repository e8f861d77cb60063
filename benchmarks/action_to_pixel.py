"""From a key to the picture that shows it: over a real connection to a real server, and in the pictures themselves.

    python -m benchmarks.action_to_pixel

Starts `worldline serve` with the bundled world, presses and lets go of keys at random moments as a client does, and takes the
time from sending an input until the first frame that was made under it is received: pacing, revisions, compute, JPEG and a
local connection; not the browser's decoding and display. Then, without a server: how far the view turns in every frame when
the input changes in the middle of a chunk, so that its remaining frames are made again (`Session.revise`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.server_abuse import Player, Target, playing
from rich.console import Console

from worldline.evaluate.yaw import yaw_between
from worldline.recipes.assets import bundled
from worldline.schema import Controls
from worldline.serve.app import listen
from worldline.serve.protocol import Frame
from worldline.stream.engine import Engine
from worldline.stream.machine import stamp

KEYS = ((), ("ArrowLeft",), ("KeyW",), ("ArrowRight",), ("KeyW", "ArrowRight"))
SETTLE = 48  # frames before the first key
WAIT = (0.25, 0.75)  # seconds between keys, long enough for each to be answered


async def live(target: Target, presses: int, seed: int) -> dict[str, float]:
    """Milliseconds from inputs to frames, percentiles; and of the pauses between frames, how many were longer than two."""
    rng, waited, gaps = random.Random(seed), [], []
    async with playing(target, 0) as player:
        sent: dict[int, float] = {}

        async def press() -> None:
            held: tuple[str, ...] = ()
            for _ in range(presses):
                await asyncio.sleep(rng.uniform(*WAIT))
                held = rng.choice([keys for keys in KEYS if keys != held])
                sent[player.seq + 1] = time.perf_counter()
                await player.press(*held)

        before = await _frames(player, SETTLE)
        pressing = asyncio.create_task(press())
        last = time.perf_counter()
        while not pressing.done() or any(seq > before for seq in sent):
            message = await player.take()
            if not isinstance(message, Frame):
                continue
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
            for seq in [seq for seq in sent if seq <= message.seq]:
                waited.append(now - sent.pop(seq))
        await pressing
    ms = 1e3 * np.array(waited)
    return {
        "presses": float(len(ms)),
        **{f"a2p_live_p{p}_ms": float(np.percentile(ms, p)) for p in (50, 95, 99)},
        "a2p_live_max_ms": float(ms.max()),
        "frames": float(len(gaps)),
        "frames_late": float(sum(gap > 2 / 16 for gap in gaps)),
    }


async def _frames(player: Player, count: int) -> int:
    """Take so many frames; the input number of the last."""
    seq = 0
    while count:
        message = await player.take(60.0)
        if isinstance(message, Frame):
            count, seq = count - 1, message.seq
    return seq


def serve_and_measure(presses: int, seed: int) -> dict[str, float]:
    """A server as a child, measured and stopped."""
    with listen("127.0.0.1", 0) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "worldline.cli", "serve", "--port", address.rsplit(":", 1)[1], "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            target, until = Target(address), time.monotonic() + 120
            while time.monotonic() < until:
                try:
                    if target.get("/readyz")[0] == 200:
                        break
                except OSError:
                    pass
                time.sleep(0.2)
            return asyncio.run(live(target, presses, seed))
        finally:
            server.terminate()


def response() -> dict[str, list[float]]:
    """Degrees turned in every frame of a chunk and of the next, mean over the start images: standing still, told to turn
    right before frame k of a chunk that was already made, and holding on. `whole`: told before the chunk was made."""
    engine = Engine.load(bundled("world"))
    n, turn = engine.frames_per_chunk, engine.config.turn_deg_per_frame
    still, found = Controls.still(n), {}

    def turning(first: int) -> Controls:
        look = np.zeros((n, 3))
        look[first:, 0] = turn
        return Controls(np.zeros((n, 3)), look)

    for k in range(n):
        rates = []
        for name in engine.starts:
            session = engine.session(name, seed=3)
            for _ in range(6):
                before = session.step(still)
            frames = session.step(turning(0) if k == 0 else still)
            if k:
                frames = np.concatenate([frames[:k], session.revise(turning(k))[k:]])
            film = np.concatenate([before[-1:], frames, session.step(turning(0))])
            rates.append(yaw_between(film, engine.config.intrinsics))
        found[f"before frame {k}" if k else "whole"] = [round(float(x), 2) for x in np.mean(rates, axis=0)]
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=120, help="inputs of the live part (default: 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    args = parser.parse_args()
    result: dict[str, Any] = {"command": f"python -m benchmarks.action_to_pixel --presses {args.presses}"}
    result |= serve_and_measure(args.presses, args.seed)
    result |= {"degrees_turned": response(), **stamp(torch.device("cpu"))}
    Console().print(result)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{date.today().isoformat()}-action-to-pixel.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
