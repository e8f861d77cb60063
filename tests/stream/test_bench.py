"""The benchmark's figures: complete, consistent, and right where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.schema import Controls, WorldlineError
from worldline.stream import bench as module
from worldline.stream.bench import SCHEMA, bench, cold_start, groups, playout
from worldline.stream.counts import Watch, count_chunk, graph_breaks
from worldline.stream.machine import ROWS, WIDTHS, Rates, measure_rates, stamp


def test_figures_are_complete_and_consistent(engine, monkeypatch):
    monkeypatch.setattr(module, "STARTS", 2)
    got = bench(engine, seconds=0.3, encode=lambda frame: bytes(frame), counts=False)
    assert got["schema"] == SCHEMA
    assert got["fps"] > 0
    assert got["chunk_p50_ms"] <= got["chunk_p95_ms"] <= got["chunk_p99_ms"]
    assert got["a2p_p50_ms"] <= got["a2p_p95_ms"] <= got["a2p_p99_ms"]
    assert got["a2p_unrevised_p50_ms"] >= got["chunk_p50_ms"]
    assert got["denoise_p50_ms"] + got["decode_p50_ms"] == pytest.approx(got["chunk_p50_ms"], rel=0.5)
    assert got["ttff_without_decode_ms"] < got["ttff_ms"]
    assert got["chunk0_denoise_ms"] < got["ttff_without_decode_ms"]
    assert got["frames"] == got["chunks"] * 4
    assert {"device", "threads", "torch", "weights", "load_average", "commit", "date", "quantised"} <= set(got)
    shown = [key for rows in groups(got).values() for key in rows]
    assert sorted(shown) == sorted(key for key, value in got.items() if value is not None)
    with pytest.raises(WorldlineError, match="seconds"):
        bench(engine, seconds=0)
    with pytest.raises(WorldlineError, match="in memory"):
        bench(engine, cold=True)


def test_a_cold_start_is_another_process(world_dir, tmp_path):
    got = cold_start(world_dir, 1)
    assert got["ttff_cold_s"] > got["cold_import_s"] + got["cold_load_s"] > 0
    with pytest.raises(WorldlineError, match="fresh process"):
        cold_start(tmp_path, 1)


def test_steady_compute_has_a_known_latency():
    """Chunks of 4 frames at 16 fps take 50 ms: an event waits U(0, 250 ms), then 50 ms and the margin of 15."""
    a2p = playout(np.full(400, 0.05), np.full(400, 0.01), None, fps=16, frames=4).latency
    assert a2p.mean() == pytest.approx(0.125 + 0.065, abs=0.005)
    assert a2p.min() == pytest.approx(0.065, abs=0.003)
    assert np.percentile(a2p, 95) == pytest.approx(0.95 * 0.25 + 0.065, abs=0.005)


def test_revisions_wait_for_a_frame_and_not_for_a_chunk():
    """The same in 20 ms, revised before every frame: an event waits U(0, 62.5 ms), then 20 ms and the margin of 15."""
    found = playout(np.full(400, 0.02), np.full(400, 0.01), np.full(10, 0.02), fps=16, frames=4)
    assert found.latency.mean() == pytest.approx(0.03125 + 0.035, abs=0.005)
    assert np.percentile(found.latency, 95) == pytest.approx(0.95 * 0.0625 + 0.035, abs=0.005)
    assert found.missed == found.late == 0


def test_a_machine_slower_than_the_world_answers_later_and_revises_nothing():
    slow = np.full(100, 0.4), np.full(100, 0.1)
    found = playout(*slow, np.full(10, 0.4), fps=16, frames=4)
    assert found.latency.mean() == pytest.approx(0.25 + 0.4, abs=0.01)  # period 500 ms: half of it, then the compute
    assert found.latency.tolist() == playout(*slow, None, fps=16, frames=4).latency.tolist()
    assert found.missed > 90


def test_one_slow_chunk_is_one_missed_deadline():
    compute = np.full(50, 0.02)
    compute[25] = 0.2
    assert playout(compute, np.full(50, 0.01), None, fps=16, frames=4).missed == 1


def test_reads_of_values_are_counted_where_they_are_made(engine):
    session, still = engine.session(seed=1), Controls.still(engine.frames_per_chunk)
    session.step(still)
    counts = count_chunk(session, still)
    assert counts.operations > 50
    assert not counts.reads
    with Watch() as watch:
        bool(torch.ones(3).all())
        torch.ones(3).nonzero()
        torch.ones(4, 4).t()  # a view is nothing to do
    assert sum(watch.counts.reads.values()) == 2
    decode = engine.codec.decode_stream

    def reads(latents, state):
        assert latents.sum() < 1e9
        return decode(latents, state)

    engine.codec.decode_stream = reads
    assert sum(count_chunk(session, still).reads.values()) == 1


def test_a_stream_compiles_without_a_break(engine):
    assert graph_breaks(engine) == 0
    forward = engine.model.forward

    def broken(*args, **kwargs):
        torch._dynamo.graph_break()
        return forward(*args, **kwargs)

    engine.model.forward = broken
    assert graph_breaks(engine) > 0


def test_rates_between_measured_sizes_are_between_them():
    rates = Rates({(r, w): float(r * w) for r in ROWS for w in WIDTHS}, {10: 1.0, 1000: 3.0}, 1.0)
    assert rates.peak == ROWS[-1] * WIDTHS[-1]
    assert rates.product(1, 100) == ROWS[0] * WIDTHS[0]
    assert rates.product(64, 5000) == 64 * WIDTHS[1]
    assert [rates.convolution(n) for n in (1, 100, 5000)] == pytest.approx([1.0, 2.0, 3.0])
    assert rates.product(16, 200) < rates.product(40, 200) < rates.product(64, 200)


def test_a_stamp_names_no_host():
    import socket

    got = stamp(torch.device("cpu"))
    assert got["cores"] >= 1
    assert got["torch"] == torch.__version__
    assert socket.gethostname() not in str(got)


@pytest.mark.slow
def test_rates_are_measured():
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert rates.peak > 1e9
    assert rates.memory > 1e8
    assert all(rate > 1e8 for rate in rates.convolutions.values())
