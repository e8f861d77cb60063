"""The benchmark's figures: complete, consistent, and right where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.schema import WorldlineError
from worldline.stream.bench import action_to_pixel, bench


def test_figures_are_complete_and_consistent(engine):
    got = bench(engine, seconds=0.3)
    assert got["fps"] > 0
    assert got["chunk_p50_ms"] <= got["chunk_p95_ms"]
    assert got["a2p_p50_ms"] <= got["a2p_p95_ms"]
    assert got["a2p_p50_ms"] >= got["chunk_p50_ms"]
    assert got["denoise_p50_ms"] + got["decode_p50_ms"] == pytest.approx(got["chunk_p50_ms"], rel=0.5)
    assert got["frames"] == got["chunks"] * 4
    assert {"device", "threads", "torch", "weights", "load_average"} <= set(got)
    with pytest.raises(WorldlineError, match="seconds"):
        bench(engine, seconds=0)


def test_steady_compute_has_a_known_latency():
    """Chunks of 4 frames at 16 fps take 50 ms: an event waits U(0, 250 ms), then 50 ms and the margin of 15."""
    a2p = action_to_pixel(np.full(400, 0.05), np.full(400, 0.01), fps=16, frames=4)
    assert a2p.mean() == pytest.approx(0.125 + 0.065, abs=0.005)
    assert a2p.min() == pytest.approx(0.065, abs=0.003)
    assert np.percentile(a2p, 95) == pytest.approx(0.95 * 0.25 + 0.065, abs=0.005)


def test_a_machine_slower_than_the_world_answers_later():
    a2p = action_to_pixel(np.full(100, 0.4), np.full(100, 0.1), fps=16, frames=4)
    assert a2p.mean() == pytest.approx(0.25 + 0.4, abs=0.01)  # period 500 ms: half of it, then the compute
