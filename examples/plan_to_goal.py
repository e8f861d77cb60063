"""Reach a view that is only known as a picture, by imagining what controls would show (the cross-entropy method, CEM).

    python examples/plan_to_goal.py --episodes 8 --picture plan.png --json plan.json

A goal picture is made by a secret walk from a start. The planner gets the picture alone. It imagines candidate walks as one
batch, keeps those whose last latent is nearest to the picture's, draws new candidates around them, walks the first part of
the best, and plans again. Beside it: the same number of chunks under random controls. An episode succeeds where the walk ends
within 10 degrees and 0.12 model units (a chunk and a half of walking) of the secret one's camera; the planner never sees either.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from worldline.recipes.assets import bundled
from worldline.schema import Controls
from worldline.stream.engine import Engine
from worldline.stream.env import controls_of
from worldline.stream.imagine import imagine, still_latent
from worldline.stream.session import Session

HOLD = 2  # chunks an action is held for
DEGREES, UNITS = 10.0, 0.12


def track(engine: Engine, actions: np.ndarray) -> Controls:
    """actions [A, 2] (forward, turn), each held for HOLD chunks."""
    rows = [controls_of(engine, np.array([0.0, forward, turn])) for forward, turn in actions for _ in range(HOLD)]
    return Controls.concat(rows)


def plan(
    session: Session, goal: np.ndarray, left: int, rng: np.random.Generator, candidates: int, rounds: int
) -> np.ndarray:
    """The best actions [left, 2] found towards a goal picture."""
    mean, std = np.tile((0.5, 0.0), (left, 1)), np.tile((0.5, 0.6), (left, 1))
    target, best, least = still_latent(session, goal), mean, np.inf
    for _ in range(rounds):
        tried = np.clip(rng.normal(mean, std, (candidates, left, 2)), -1, 1)
        tried[0] = best
        seen = imagine(session, [track(session.engine, a) for a in tried], frames=False).latents[:, -1]
        cost = (seen - target).square().mean(dim=(1, 2, 3)).cpu().numpy()
        elite = tried[np.argsort(cost)[: max(2, candidates // 4)]]
        mean, std = elite.mean(axis=0), elite.std(axis=0) + 0.05
        if cost.min() < least:
            best, least = tried[cost.argmin()], float(cost.min())
    return best


def away(session: Session, other: Session) -> tuple[float, float]:
    """Degrees of heading and model units between two walks' cameras."""
    a, b = session.pose, other.pose
    heading = [np.degrees(np.arctan2(p[0, 2], p[2, 2])) for p in (a, b)]
    return abs((heading[0] - heading[1] + 180) % 360 - 180), float(np.linalg.norm(a[:3, 3] - b[:3, 3]))


def episode(engine: Engine, number: int, actions: int, candidates: int, rounds: int) -> dict[str, Any]:
    """One goal, for the planner and for random controls."""
    rng = np.random.default_rng(number)
    start = sorted(engine.starts)[number % len(engine.starts)]
    secret, planner, random = (engine.session(start, seed=number) for _ in range(3))
    hidden = np.stack([rng.uniform(0, 1, actions), rng.uniform(-0.6, 0.6, actions)], axis=1)
    n = engine.frames_per_chunk
    for session, how in (
        (secret, hidden),
        (random, np.stack([rng.uniform(0, 1, actions), rng.uniform(-0.6, 0.6, actions)], 1)),
    ):
        rows = track(engine, how)
        for i in range(0, len(rows), n):
            session.step(rows[i : i + n])
    for left in range(actions, 0, -1):
        rows = track(engine, plan(planner, secret.last_frame, left, rng, candidates, rounds)[:1])
        for i in range(0, len(rows), n):
            planner.step(rows[i : i + n])
    found: dict[str, Any] = {"pictures": [s.last_frame for s in (secret, planner, random)], "first": secret.first_frame}
    for name, session in (("planner", planner), ("random", random)):
        degrees, units = away(session, secret)
        error = (session.last_frame.astype(float) - secret.last_frame) ** 2
        found |= {
            f"{name}_degrees": degrees, f"{name}_units": units, f"{name}_success": degrees <= DEGREES and units <= UNITS,
            f"{name}_psnr": 10 * float(np.log10(255**2 / max(error.mean(), 1e-9))),
        }  # fmt: skip
    return found


def main() -> None:
    """Play the episodes, print what came of them."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--world", default=None, help="a world directory (default: the bundled one)")
    args.add_argument("--episodes", type=int, default=8)
    args.add_argument("--actions", type=int, default=3, help=f"actions to the goal, each held for {HOLD} chunks")
    args.add_argument("--candidates", type=int, default=12)
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--picture", type=Path, help="write start, goal, planner's and random last view of every episode")
    args.add_argument("--json", type=Path)
    said = args.parse_args()
    engine, begin = Engine.load(said.world or bundled("world"), threads=1, warm=False), time.process_time()
    episodes = [episode(engine, i, said.actions, said.candidates, said.rounds) for i in range(said.episodes)]
    figures: dict[str, Any] = {
        "episodes": len(episodes),
        "weights": engine.weights,
        "cpu_s": time.process_time() - begin,
    }
    for name in ("planner", "random"):
        figures[f"{name}_success"] = float(np.mean([e[f"{name}_success"] for e in episodes]))
        for what in ("degrees", "units", "psnr"):
            figures[f"{name}_{what}_median"] = float(np.median([e[f"{name}_{what}"] for e in episodes]))
    Console().print_json(json.dumps(figures))
    if said.json:
        said.json.write_text(json.dumps(figures, indent=1) + "\n")
    if said.picture:
        from PIL import Image

        rows = [np.concatenate([e["first"], *e["pictures"]], axis=1) for e in episodes]
        sheet = Image.fromarray(np.concatenate(rows))
        sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(said.picture)


if __name__ == "__main__":
    main()
