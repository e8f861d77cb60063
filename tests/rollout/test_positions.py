"""Sinks of long walks: a ring under each policy equals attention over everything ever seen, positions by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.functional.prope import projection_matrices
from worldline.models.backbone import TextContext
from worldline.nn.kv_cache import KVCache
from worldline.rollout.loop import ChunkLoop
from worldline.rollout.plan import RolloutPlan
from worldline.rollout.positions import shift_at
from worldline.schema import Cameras, WorldlineError

DH = 16  # head width of the tiny model


def rotation(frames: float) -> np.ndarray:
    """The rotation in time by its definition: pair i of n turns by frames * theta^(-i / n), as a real matrix on rows."""
    d2 = DH // 2
    n, out = d2 - 2 * (d2 // 3), np.eye(DH)
    for i in range(n):
        a = frames * 1e4 ** (-i / n)
        out[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]
    return out


def places(policy: str, visibility: Visibility, horizon: int, end: int) -> dict[int, int]:
    """The position of every frame in sight of the chunk that ends before `end`, by the words of the policy."""
    seen = visibility.visible_frames(end - visibility.chunk, end)
    if policy == "rebased":
        return {f: i for i, f in enumerate(seen)}
    if policy == "clamp":
        last = min(end, horizon) - 1
        return {f: f if f < visibility.sink else last - (end - 1 - f) for f in seen}
    return {f: f for f in seen}


class Everything(KVCache):
    """All keys and values ever made, each turned anew for every chunk that looks at it."""

    def __init__(self, visibility: Visibility, policy: str, horizon: int, cameras: Cameras, fused: bool) -> None:
        super().__init__(visibility)
        self.policy, self.horizon, self.fused = policy, horizon, fused
        _, inverse = projection_matrices(cameras.w2c, cameras.K)
        self.carried = inverse.mT.double().numpy()  # [B, T, 4, 4]: what a key of frame t was multiplied by
        self.kept: dict = {}

    def turned(self, stream, k: Tensor, frame: int, by: float) -> Tensor:
        """A key of `frame`, `by` frames later in time, under its camera."""
        if stream[1] != "main":
            return k
        parts = []
        for b in range(len(k)):
            A = np.eye(DH)
            if self.fused:
                for g in range(DH // 8):  # the first half of the head, in groups of four
                    A[4 * g : 4 * g + 4, 4 * g : 4 * g + 4] = self.carried[b, frame]
            parts.append(k[b].double() @ torch.from_numpy(np.linalg.inv(A) @ rotation(by) @ A))
        return torch.stack(parts).to(k.dtype)

    def places(self, n: int) -> dict[int, int]:
        return places(self.policy, self.visibility, self.horizon, self.frames + n)

    def attend(self, stream, k: Tensor, v: Tensor, n: int) -> tuple[Tensor, Tensor]:
        own = list(zip(k.chunk(n, dim=2), v.chunk(n, dim=2), strict=True))
        if self.writing:
            for i, pair in enumerate(own):
                self.kept[stream, self.frames + i] = (*pair, self.places(n)[self.frames + i])
        keys, values = [], []
        for f, place in self.places(n).items():
            if f < self.frames:
                key, value, at = self.kept[stream, f]
                keys.append(self.turned(stream, key, f, place - at))
                values.append(value)
        return torch.cat([*keys, k], dim=2), torch.cat([*values, v], dim=2)

    def fork(self):
        raise NotImplementedError

    def transform(self, fn):
        raise NotImplementedError


@pytest.mark.parametrize("camera", ["none", "branch", "fused"])
@pytest.mark.parametrize(
    ("policy", "chunk", "sink", "prefix"),
    [
        ("absolute", 1, 2, 1),
        ("rebased", 1, 2, 1),
        ("rebased", 1, 0, 1),
        ("rebased", 2, 2, 0),
        ("clamp", 1, 1, 1),
        ("clamp", 2, 3, 1),
    ],
)
@torch.no_grad()
def test_a_ring_equals_everything_ever_seen(tiny_wan, tiny_text, cameras, camera, policy, chunk, sink, prefix):
    model, window, horizon = tiny_wan(camera), 4, 9
    visibility = Visibility(chunk=chunk, window=window, sink=sink, prefix=prefix)
    T = prefix + (sink + 4 * window + horizon) // chunk * chunk  # four wraps, well beyond the horizon
    plan = RolloutPlan(visibility, (1.0,), positions=policy, horizon=horizon if policy == "clamp" else None)
    poses, text = cameras(2, T), tiny_text(2)
    loop, context = ChunkLoop(model, plan, text, cache="ring"), model.text_context(text)
    everything = Everything(visibility, policy, horizon, poses, camera == "fused")
    g = torch.Generator().manual_seed(0)
    spans = ([(0, prefix)] if prefix else []) + [(s, s + chunk) for s in range(prefix, T, chunk)]
    for start, stop in spans:
        n, view = stop - start, poses[start:stop]
        clean, noise = torch.randn(2, 2, n, 4, 4, 6, generator=g)
        if start >= prefix:
            wanted = reference(model, noise, 1.0, context, view, everything)
            torch.testing.assert_close(loop.denoise(noise, view), noise - wanted, atol=2e-5, rtol=2e-5)
        everything.writing = True
        reference(model, clean, 0.0, context, view, everything)
        everything.writing = False
        everything.advance(n)
        loop.commit(clean, view)
    moved = {"absolute": 0, "rebased": T - window - sink, "clamp": T - horizon}[policy]
    assert loop._shift == (moved if sink or camera == "fused" else 0)


def reference(model, x: Tensor, sigma: float, context: TextContext, view: Cameras, cache: Everything) -> Tensor:
    """One pass of a chunk, its own frames where the policy wants them."""
    n = x.shape[1]
    where = torch.tensor([cache.places(n)[cache.frames + i] for i in range(n)])
    return model(x, torch.full(x.shape[:2], sigma), context, cameras=view, positions=where, cache=cache)


@torch.no_grad()
def test_moved_frames_pass_through_reanchoring_forks_and_recaching(tiny_wan, tiny_text, cameras):
    model, text, poses = tiny_wan("fused"), tiny_text(2), cameras(2, 20)
    plan = RolloutPlan(Visibility(chunk=1, window=4, sink=2), (1.0,), positions="rebased")
    noise = torch.randn(2, 1, 4, 4, 6)

    def walked(reanchored: bool) -> Tensor:
        loop, g = ChunkLoop(model, plan, text, cache="ring"), torch.Generator().manual_seed(0)
        world = torch.eye(4).expand(2, 4, 4)
        for t in range(16):
            view = poses[t : t + 1]
            moved = type(view)(view.w2c @ torch.linalg.inv(world)[:, None], view.K, view.motion)
            loop.commit(torch.randn(2, 1, 4, 4, 6, generator=g), moved)
            if reanchored and t in (5, 12):
                loop.reanchor(moved.w2c[:, 0])
                world = moved.w2c[:, 0] @ world
        view = poses[16:17]
        moved = type(view)(view.w2c @ torch.linalg.inv(world)[:, None], view.K, view.motion)
        other = loop.fork()
        torch.testing.assert_close(other.denoise(noise, moved), loop.denoise(noise, moved), atol=0, rtol=0)
        assert loop._shift == 17 - 6
        loop.recache(text)
        again = loop.denoise(noise, moved)
        return torch.stack([other.denoise(noise, moved), again])

    torch.testing.assert_close(walked(True), walked(False), atol=3e-5, rtol=1e-4)


def test_what_a_policy_says():
    sinks, none = Visibility(chunk=1, window=8, sink=2), Visibility(chunk=1, window=8)
    assert [shift_at("rebased", sinks, None, end) for end in (9, 10, 11, 500)] == [0, 0, 1, 490]
    assert [shift_at("clamp", none, 17, end) for end in (17, 18, 500)] == [0, 1, 483]
    assert shift_at("clamp", sinks, 4, 10) == 0, "what is in sight is never moved into itself"
    assert shift_at("absolute", sinks, None, 500) == 0
    for wrong in ({"positions": "relative"}, {"positions": "clamp"}, {"horizon": 17}):
        with pytest.raises(WorldlineError, match="positions"):
            RolloutPlan(sinks, (1.0,), **wrong)


@torch.no_grad()
def test_only_differences_are_seen_without_sinks_unless_cameras_turn_with_positions(tiny_wan, tiny_text, cameras):
    """Why fused worlds need a policy: a common shift of all positions changes what they see, and nothing in the others."""
    poses, text = cameras(1, 3), tiny_text()
    for camera in ("branch", "fused"):
        model = tiny_wan(camera)
        x, context = torch.randn(1, 3, 4, 4, 6), model.text_context(text)
        near, far = (
            model(x, torch.ones(1, 3), context, cameras=poses, positions=torch.arange(3) + start) for start in (0, 500)
        )
        assert ((near - far).abs().max() > 1e-3) == (camera == "fused")


def test_blocks_take_no_policy(tiny_wan, tiny_text):
    plan = RolloutPlan(Visibility(chunk=1, window=4, sink=1), (1.0,), positions="rebased")
    with pytest.raises(WorldlineError, match="ring"):
        ChunkLoop(tiny_wan(), plan, tiny_text(1))
