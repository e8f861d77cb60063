"""Players of all three kinds, with the real classes made tiny."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import randomise
from tests.evaluate.panorama import K
from worldline.data.sources.doomrooms.engine import WALK_UNITS_PER_FRAME
from worldline.evaluate.episodes import Episode, spin_controls
from worldline.evaluate.latency import first_frame_latency, latency_metrics
from worldline.evaluate.player import Player, nominal_path, to_uint8
from worldline.functional.masks import Visibility
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.models.text import HashTextEncoder
from worldline.rollout.loop import ChunkLoop, generate
from worldline.rollout.plan import RolloutPlan
from worldline.schema import Controls, ShapeError, WorldlineError

CHUNKS = Visibility(chunk=1, window=3, prefix=1)
FEW = RolloutPlan(CHUNKS, (1.0, 0.8))
MANY = RolloutPlan.multi_step(CHUNKS, steps=3, guidance=2.0)
WHOLE = RolloutPlan.multi_step(Visibility(bidirectional=True, prefix=1), steps=3, guidance=2.0)


@pytest.fixture
def make(tiny_wan):
    sizes = NanoVAEConfig(latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), blocks=1)
    codec = randomise(NanoVAE(sizes), seed=1, std=0.2).eval()

    def player(plan: RolloutPlan = FEW, camera: str = "fused", whole_clip: int | None = None) -> Player:
        return Player(tiny_wan(camera), codec, HashTextEncoder(8, 6), plan, 0.02, whole_clip, bf16=False)

    return player


@pytest.fixture
def start():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)


def paths(frames: int = 17, turn: float = 2.0):
    controls = Controls(np.zeros((frames - 1, 3)), np.tile((turn, 0, 0), (frames - 1, 1)))
    return [nominal_path(controls, K, WALK_UNITS_PER_FRAME)] * 2


@pytest.mark.parametrize(("plan", "whole_clip"), [(FEW, None), (MANY, None), (WHOLE, 5)])
def test_every_kind_plays_batches_deterministically(make, start, plan, whole_clip):
    player = make(plan, whole_clip=whole_clip)
    frames = player.play(start, paths(), ["a hall", "a cellar"], seed=1)
    assert frames.shape == (2, 17, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, player.play(start, paths(), ["a hall", "a cellar"], seed=1))
    assert not np.array_equal(frames, player.play(start, paths(), ["a hall", "a cellar"], seed=2))


def test_frame_zero_is_the_start_as_the_codec_shows_it(make, start):
    player = make()
    with torch.no_grad():
        video = torch.from_numpy(start).permute(0, 3, 1, 2)[:, None].float() / 127.5 - 1
        shown = to_uint8(player.codec.decode(player.codec.encode(video)))
    assert np.array_equal(player.play(start, paths(), ["", ""])[:, :1], shown)


def test_a_stream_without_its_start_shows_the_same_later_frames(make, start):
    whole = list(make().stream(start, paths(), ["a hall", "a cellar"]))
    later = list(make().stream(start, paths(), ["a hall", "a cellar"], show_start=False))
    assert len(later) == len(whole) - 1
    for a, b in zip(later, whole[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stream_is_the_chunk_loop_decoded_at_once(make, start):
    player = make()
    request = player.request(start, paths(), ["a", "b"], seed=3)
    with torch.no_grad():
        loop = ChunkLoop(player.model, FEW, request.text)
        chunks = generate(loop, request.noise, request.cameras, prefix=request.prefix, generator=request.generator)
        at_once = to_uint8(player.codec.decode(torch.cat([request.prefix, *chunks], dim=1)))
    streamed = player.play(start, paths(), ["a", "b"], seed=3)
    assert np.abs(streamed.astype(int) - at_once).max() <= 1


@pytest.mark.parametrize(("plan", "whole_clip"), [(FEW, None), (WHOLE, 5)])
def test_cameras_steer_a_camera_model_and_no_other(make, start, plan, whole_clip):
    def play(camera: str, turn: float) -> np.ndarray:
        return make(plan, camera, whole_clip).play(start, paths(turn=turn), ["", ""])

    assert not np.array_equal(play("fused", 2.0), play("fused", -2.0))
    assert np.array_equal(play("none", 2.0), play("none", -2.0))


def test_long_episodes_are_cut_to_whole_chunks_and_to_the_clip(make, start):
    assert make().play(start, paths(20), ["", ""]).shape[1] == 17
    assert make(WHOLE, whole_clip=3).play(start, paths(20), ["", ""]).shape[1] == 9
    with pytest.raises(WorldlineError, match="at least 5"):
        make().play(start, paths(4), ["", ""])


def test_mismatched_batches_and_plans_are_refused(make, start):
    with pytest.raises(ShapeError, match="1 captions"):
        make().play(start, paths(), ["one"])
    with pytest.raises(WorldlineError, match="prefix 0"):
        make(RolloutPlan(Visibility(chunk=1), (1.0,)))


def test_autocast_does_not_leak_between_chunks(make, start):
    player = make()
    object.__setattr__(player, "bf16", True)
    for _ in player.stream(start, paths(), ["", ""]):
        assert not torch.is_autocast_enabled("cpu")


def test_nominal_cameras_turn_as_asked_and_walk_at_speed():
    controls = Controls(np.tile((0, 0, 1), (60, 1)), np.tile((1.5, 0, 0), (60, 1)))
    path = nominal_path(controls, K, WALK_UNITS_PER_FRAME)
    assert len(path) == 61
    assert np.allclose(path.c2w[0], np.eye(4))
    forward = path.c2w[20, :3, 2]
    assert np.rad2deg(np.arctan2(forward[0], forward[2])) == pytest.approx(30)
    speed = np.linalg.norm(np.diff(path.c2w[:, :3, 3], axis=0), axis=1)
    assert speed[0] < speed[-1] == pytest.approx(WALK_UNITS_PER_FRAME, rel=0.1)


def test_latency_counts_what_a_first_frame_waits_for(make, start):
    controls = spin_controls(16, np.random.default_rng(0))
    episode = Episode("e", "walk", "a hall", np.repeat(start[:1], 17, axis=0), paths()[0], controls)
    players = {"bidirectional": make(WHOLE, whole_clip=5), "ar_multistep": make(MANY), "ar_fewstep": make()}
    rows = first_frame_latency(players, episode, runs=2)
    assert [(r.kind, r.calls, r.latents) for r in rows] == [
        ("bidirectional", 6, 4),
        ("ar_multistep", 6, 1),
        ("ar_fewstep", 2, 1),
    ]
    metrics = latency_metrics(rows)
    assert metrics["first_frame_speedup"] == pytest.approx(rows[0].pixels_ms / rows[2].pixels_ms, abs=0.01)
    assert all(value > 0 for value in metrics.values())
    with pytest.raises(WorldlineError, match="expected some of"):
        first_frame_latency({"fast": make()}, episode)


def test_the_two_definitions_time_the_calls_they_say(make, start, monkeypatch):
    """Model calls inside each stopwatch: denoising alone, or denoising with the cache write in it."""
    from worldline.evaluate import latency

    player, calls = make(MANY), []
    hook = player.model.register_forward_hook(lambda *_: calls.append(1))
    timed = []

    def count(player, work):
        before = len(calls)
        work()
        timed.append(len(calls) - before)
        return 1.0

    monkeypatch.setattr(latency, "_timed", count)
    controls = spin_controls(16, np.random.default_rng(0))
    episode = Episode("e", "walk", "", np.repeat(start[:1], 17, axis=0), paths()[0], controls)
    first_frame_latency({"ar_multistep": player}, episode, runs=1)
    hook.remove()
    assert timed[-2:] == [6, 6]  # the clean pass of the start is one with the first step
