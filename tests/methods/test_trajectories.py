"""Trajectories are shared out: several processes leave the files that one leaves, and fail together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.conftest import EMPTY, TinyClips
from tests.train.jobs import VISIBLE, wan
from tests.train.processes import together

from worldline import dist
from worldline.methods.ode import ODEConfig, generate_trajectories
from worldline.schema import WorldlineError

pytestmark = pytest.mark.timeout(900)  # several processes on a busy machine wait for each other

SHARED = ODEConfig(steps=2, euler_steps=2, clips=9, clips_per_batch=2)


def solve(out: str, broken: int = -1) -> list[tuple[int, int]]:
    """What this process was told of its progress. broken: the rank whose teacher gives no numbers."""
    teacher, seen = wan(), []
    if dist.rank() == broken:
        with torch.no_grad():
            teacher.proj_out.bias.fill_(float("nan"))
    generate_trajectories(
        teacher, TinyClips(), EMPTY, VISIBLE, SHARED, out, seed=3, progress=lambda *at: seen.append(at)
    )
    return seen


def test_processes_share_trajectories(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert solve(str(one)) == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    two.mkdir()
    kept = two / "trajectories-000002.safetensors"
    kept.write_bytes((one / kept.name).read_bytes())
    # Left are the shards of clips 0, 4, 6 and 8 (of one clip), in turn.
    assert together(2, solve, str(two)) == [[(2, 4), (4, 4)], [(2, 3), (3, 3)]]
    files = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in two.iterdir()) == files
    for name in files:
        mine, theirs = load_file(one / name), load_file(two / name)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


def test_a_failure_of_any_process_stops_all(tmp_path):
    first, second = together(2, solve, str(tmp_path), 1)
    assert isinstance(first, WorldlineError)
    assert "rank 1 failed, the others stop with it" in str(first)
    assert isinstance(second, WorldlineError)
    assert "non-finite" in str(second)
    assert len(list(Path(tmp_path).glob("*.safetensors"))) == 3, "what the first solved is kept"
