"""The forward pass as compilers and accelerators want it: one graph without a break, and no waiting for the device."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests.models.test_wan_parity import oracle
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worldline.functional.masks import Visibility
from worldline.models.wan import WanConfig, WanModel
from worldline.nn.attention import FrameMask
from worldline.nn.kv_cache import RingCache
from worldline.schema import Cameras, TextEmbedding

CAMERAS = ["none", "fused", "branch", "plucker", "cross"]
VIEWS = {
    "view",
    "_unsafe_view",
    "unsqueeze",
    "transpose",
    "t",
    "slice",
    "split",
    "select",
    "unbind",
    "expand",
    "permute",
}
WAITS = ("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.is_nonzero", "aten.masked_select")


class Graphs(list):
    """A compiler that keeps the graphs it is given and runs them as they are."""

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]):
        self.append(graph)
        return graph.forward

    def compile(self, model: WanModel):
        torch._dynamo.reset()
        return torch.compile(model, fullgraph=True, backend=self)  # a break would raise


class Watch(TorchDispatchMode):
    """Names every operator that runs, and those that move values between devices or to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        self.names.append(str(func))
        if len(devices) > 1 or str(func).startswith(WAITS):
            self.waits.append(str(func))
        return out


@pytest.mark.parametrize("camera", CAMERAS)
@torch.no_grad()
def test_whole_clips_compile_to_one_graph(tiny_wan, tiny_text, cameras, camera):
    model, graphs = tiny_wan(camera, num_layers=1), Graphs()
    compiled, context, poses = graphs.compile(model), model.text_context(tiny_text()), cameras(1, 3)
    for seed in range(3):
        x, sigma = torch.randn(1, 3, 4, 4, 6, generator=torch.Generator().manual_seed(seed)), torch.rand(1, 3)
        wanted = model(x, sigma, context, cameras=poses)
        torch.testing.assert_close(compiled(x, sigma, context, cameras=poses), wanted, atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("camera", ["none", "fused"])
def test_a_teacher_forcing_step_compiles_to_one_graph(tiny_wan, tiny_text, cameras, camera):
    model, graphs = tiny_wan(camera, num_layers=1), Graphs()
    compiled, poses = graphs.compile(model), cameras(1, 4).tile(frames=2)
    mask = FrameMask(Visibility(chunk=2).teacher_forcing_mask(4), tokens=4)
    positions = torch.arange(4).repeat(2)
    found = []
    for run in (model, compiled, compiled):
        generator = torch.Generator().manual_seed(0)
        x, sigma = torch.randn(1, 8, 4, 4, 4, generator=generator), torch.rand(1, 8, generator=generator)
        out = run(x, sigma, model.text_context(tiny_text()), cameras=poses, positions=positions, mask=mask)
        model.zero_grad()
        out.square().mean().backward()
        found.append((out.detach(), model.blocks[0].attn1.to_k.weight.grad.clone()))
    for got in found[1:]:
        torch.testing.assert_close(got, found[0], atol=1e-5, rtol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("camera", ["none", "fused", "branch"])
@torch.no_grad()
def test_a_stream_compiles_to_three_graphs(tiny_wan, tiny_text, cameras, camera):
    """Six chunks of three passes while the ring fills, is full and wraps: one graph makes the buffers, one serves the rest
    of the first chunk, and all later ones share one in which the number of past frames is a symbol."""
    model, graphs = tiny_wan(camera, num_layers=1), Graphs()
    compiled, context, poses = graphs.compile(model), model.text_context(tiny_text()), cameras(1, 12)
    ring, plain = (RingCache(Visibility(chunk=2, window=6)) for _ in range(2))
    for start in range(0, 12, 2):
        view, x = poses[start : start + 2], torch.randn(1, 2, 4, 4, 4)
        for level in (1.0, 0.5, 0.0):
            sigma = torch.full((1, 2), level)
            wanted = model(x, sigma, context, cameras=view, cache=plain)
            got = compiled(x, sigma, context, cameras=view, cache=ring)
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        ring.advance(2)
        plain.advance(2)
    assert len(graphs) <= 3


@pytest.mark.parametrize("camera", CAMERAS)
@torch.no_grad()
def test_a_forward_asks_for_no_value(tiny_wan, tiny_text, cameras, camera):
    model = tiny_wan(camera, motion=True)
    context, cache = model.text_context(tiny_text()), RingCache(Visibility(chunk=2, window=4))
    with Watch() as watch:
        for start in range(0, 6, 2):
            view = cameras(1, 6)[start : start + 2]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                model(torch.randn(1, 2, 4, 4, 4), torch.rand(1, 2), context, cameras=view, cache=cache)
            cache.advance(2)
    assert watch.waits == []
    assert "aten.addmm.default" in watch.names


@pytest.mark.parametrize("camera", CAMERAS)
@torch.no_grad()
def test_a_forward_copies_nothing_from_the_host(tiny_wan, monkeypatch, camera):
    """Tensors on `meta` stand for those of an accelerator: any operator that also takes one of the CPU is a transfer,
    for which a device must be waited for and which no CUDA graph may hold."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # meta has none
    model = tiny_wan(camera, motion=True).to("meta")
    with torch.device("meta"):
        text = TextEmbedding(torch.empty(1, 6, 8), torch.empty(1, 6, dtype=torch.bool), "")
        x, sigma = torch.empty(1, 2, 4, 4, 4), torch.empty(1, 2)
        poses = Cameras(torch.empty(1, 2, 4, 4), torch.empty(1, 2, 4), torch.empty(1, 2, 6))
    context, cache = model.text_context(text), RingCache(Visibility(chunk=2, window=4))
    with Watch() as watch:
        model(x, sigma, context, cameras=poses, cache=cache)
    assert watch.waits == []


@torch.no_grad()
def test_a_block_launches_fewer_operators_than_diffusers(tiny_text):
    """Launches, not arithmetic, bound small worlds on an accelerator. Views cost nothing there."""
    text, x = tiny_text(), torch.randn(1, 3, 4, 4, 4)

    def launches(make) -> int:
        counts = []
        for layers in (1, 2):
            cfg = WanConfig(32, 48, 2, layers, text_dim=8, text_len=6, in_channels=4, out_channels=4)
            forward = make(cfg)
            with Watch() as watch:
                forward()
            counts.append(sum(name.split(".")[1] not in VIEWS for name in watch.names))
        return counts[1] - counts[0]

    def ours(cfg: WanConfig):
        model = WanModel(cfg)
        context, sigma = model.text_context(text), torch.rand(1, 3)
        return lambda: model(x, sigma, context)

    def theirs(cfg: WanConfig):
        model = oracle(cfg)
        return lambda: model(x.transpose(1, 2), torch.rand(1), text.tokens)

    assert launches(ours) <= 0.75 * launches(theirs)
