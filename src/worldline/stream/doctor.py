"""Is this machine in order? Every part that a stream may use, tried on small numbers against a reference.

A check says what it found; where something is amiss it says what mends it. PASS: works and agrees. WARN: works without it,
or slower. FAIL: streaming here would go wrong. SKIP: not there, and not needed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.functional.masks import Visibility
from worldline.nn.attention import AttentionBackend, FrameMask, attention
from worldline.nn.kv_cache import BlockCache, RingCache
from worldline.nn.packed import PackedLinear, packs
from worldline.nn.precision import inference_dtype
from worldline.nn.quant import QuantisationError, QuantLinear, quantise_rows
from worldline.stream.machine import memory_bytes, processor

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]
BACKENDS: tuple[AttentionBackend, ...] = ("dense", "blocks", "flex")
NEAR = 0.02  # relative error that bf16 may have; fp32 stays far below
DISK = 2 << 30  # bytes that recordings and runs want
OPTIONAL = {
    "gymnasium": "pip install gymnasium, for a world as an environment",
    "transformers": "pip install 'worldline[text]', for worlds with a large text encoder",
    "tensorboard": "pip install 'worldline[log]', for training curves",
}
REQUIRED = ("numpy", "safetensors", "fastapi", "uvicorn", "websockets", "simplejpeg", "av", "vizdoom")


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    status: Status
    found: str
    mend: str = ""


def examine(device: torch.device, *, compiling: bool = True, port: int = 8000) -> Iterator[Check]:
    """Every check, one after the other; one that breaks is a FAIL of its own and ends none of the others.

    compiling: also compile a small function, which takes some seconds of a CPU; port: where `play` would serve.
    """
    checks: dict[str, Callable[[], Check]] = {
        "software": _software,
        "device": lambda: _device(device),
        "load": _load,
        "attention": lambda: _attention(device),
        **{f"attention: {b}": partial(_masked, device, b) for b in BACKENDS},
        "ring cache": lambda: _ring(device),
        "packed bf16 layers": lambda: _packed(device),
        "int8 layers": lambda: _quantised(device, "int8"),
        "fp8 layers": lambda: _quantised(device, "fp8"),
        "CUDA graph": lambda: _graph(device),
        "JPEG": _jpeg,
        "H.264": _video,
        **{f"package {name}": partial(_optional, name) for name in OPTIONAL},
        "browser tests": _chromium,
        "port": lambda: _port(port),
        "disk": _disk,
    }  # fmt: skip
    if compiling:
        checks["compile"] = lambda: _compile(device)
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:
            text = str(error).splitlines()[0][:200] if str(error) else ""
            yield Check(
                name, "FAIL", f"{type(error).__name__}: {text}", "reinstall worldline and torch; else report it"
            )


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative, of the norm."""
    return float((found.double() - exact).norm() / exact.norm())


def _agrees(name: str, error: float, mend: str, near: float = NEAR) -> Check:
    status: Status = "PASS" if error <= near else "FAIL"
    return Check(name, status, f"relative error {error:.1e} (at most {near:g})", "" if status == "PASS" else mend)


def _software() -> Check:
    missing, found = [], []
    for name in REQUIRED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    text = f"python {sys.version.split()[0]}, torch {torch.__version__}, {', '.join(found)}"
    if missing:
        return Check("software", "FAIL", f"{text}; missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("software", "PASS", text)


def _device(device: torch.device) -> Check:
    whole, free = memory_bytes(device)
    memory = f"{whole / 2**30:.1f} GiB, {free / 2**30:.1f} free"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Check("device", "PASS", f"{torch.cuda.get_device_name(device)}, capability {major}.{minor}, {memory}")
    text = f"{processor()}, {os.cpu_count()} cores, {memory}"
    if inference_dtype(device) == torch.float32:
        return Check("device", "WARN", f"{text}; no bf16 instructions", "streams run in fp32, at about half the speed")
    return Check("device", "PASS", f"{text}; bf16 instructions")


def _load() -> Check:
    if not hasattr(os, "getloadavg"):
        return Check("load", "SKIP", "this system does not tell")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        mend = "speeds below are those of a busy machine; stop what else runs and ask again"
        return Check("load", "WARN", f"{load:.1f} on {cores} cores", mend)
    return Check("load", "PASS", f"{load:.1f} on {cores} cores")


def _qkv(device: torch.device, frames: int = 4, tokens: int = 24) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, frames * tokens, 64, generator=generator).to(device) for _ in range(3)]


def _exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention by its definition, in fp64."""
    weights = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    if mask is not None:
        weights = weights.masked_fill(~mask, float("-inf"))
    return weights.softmax(dim=-1) @ v.double()


@torch.no_grad()
def _attention(device: torch.device) -> Check:
    dtype = inference_dtype(device)
    q, k, v = (x.to(dtype) for x in _qkv(device))
    return _agrees(f"attention ({str(dtype)[6:]})", _error(attention(q, k, v), _exact(q, k, v)), "reinstall torch")


@torch.no_grad()
def _masked(device: torch.device, backend: AttentionBackend) -> Check:
    tokens = 128 if backend == "flex" else 24  # the kernel's own block
    if backend == "flex" and device.type != "cuda":
        return Check("attention: flex", "SKIP", "a kernel of accelerators; a CPU uses blocks")
    visible = Visibility(chunk=1, window=2).frame_mask(4)
    q, k, v = _qkv(device, tokens=tokens)
    found = FrameMask(visible, tokens, backend).attend(q, k, v)
    mask = Visibility.expand(visible, tokens).to(device)
    mend = "choose another attention backend, such as dense, and report it"
    return _agrees(f"attention: {backend}", _error(found, _exact(q, k, v, mask)), mend)


@torch.no_grad()
def _ring(device: torch.device) -> Check:
    """A ring that has wrapped three times holds what a cache that only grows lets be seen."""
    visibility, worst = Visibility(chunk=1, window=3, sink=1), 0.0
    ring, grown = RingCache(visibility), BlockCache(visibility)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3 * 3 + 2):
        q, k, v = (torch.randn(1, 2, 8, 16, generator=generator).to(device) for _ in range(3))
        outs = []
        for cache in (ring, grown):
            cache.writing = True
            outs.append(F.scaled_dot_product_attention(q, *cache.attend((0, "main"), k, v, 1)))
            cache.advance(1)
        worst = max(worst, _error(outs[0], outs[1].double()))
    return _agrees("ring cache", worst, "report it: a stream would forget what it should see", 1e-4)


@torch.no_grad()
def _packed(device: torch.device) -> Check:
    linear = nn.Linear(256, 256).to(device, torch.bfloat16)
    if not packs(linear):
        return Check("packed bf16 layers", "SKIP", "for CPUs with bf16 instructions and torch's oneDNN")
    if inference_dtype(device) == torch.float32:
        return Check("packed bf16 layers", "SKIP", "this CPU streams in fp32")
    x = torch.randn(24, 256, device=device)
    exact = F.linear(x.bfloat16().double(), linear.weight.double(), linear.bias.double())
    return _agrees("packed bf16 layers", _error(PackedLinear(linear)(x), exact), "Engine.load(dtype='float32')")


@torch.no_grad()
def _quantised(device: torch.device, scheme: Literal["int8", "fp8"]) -> Check:
    linear, x = nn.Linear(256, 256, device=device), torch.randn(24, 256, device=device)
    try:
        layer = QuantLinear.of(linear, scheme)
    except QuantisationError as error:
        return Check(f"{scheme} layers", "SKIP", str(error))
    q, scale = quantise_rows(x, scheme)
    exact = F.linear(q.double() * scale, layer.dequantised().double(), linear.bias.double())
    return _agrees(f"{scheme} layers", _error(layer(x), exact), f"do not use --quantise {scheme}", 1e-2)


@torch.no_grad()
def _graph(device: torch.device) -> Check:
    if device.type != "cuda":
        return Check("CUDA graph", "SKIP", "no CUDA device")
    from worldline.rollout.graphs import CUDARecorder

    x = torch.ones(8, device=device)
    replay, out = CUDARecorder()(lambda: x * 2)
    x.fill_(3.0)
    replay()
    return _agrees("CUDA graph", _error(out, torch.full_like(x, 6.0).double()), "Engine.load(graphs=False)")


def _compile(device: torch.device) -> Check:
    def some(x: Tensor) -> Tensor:
        return F.gelu(F.layer_norm(x, (32,)) * 2 + 1).sum(dim=-1)

    x = torch.randn(4, 32, device=device)
    try:
        found = torch.compile(some, fullgraph=True)(x)
    except Exception as error:
        text = str(error).splitlines()[0][:160]
        return Check("compile", "WARN", text, "streams run uncompiled; install a C++ compiler (g++) for torch.compile")
    return _agrees("compile", _error(found, some(x).double()), "Engine.load(compile=False)", 1e-4)


def _picture() -> np.ndarray:
    y, x = np.mgrid[0:96, 0:160]
    return np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)


def _peak(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(float(np.square(a.astype(float) - b).mean()), 1e-9)))


def _seen(name: str, dB: float, mend: str) -> Check:
    return Check(name, "PASS" if dB > 30 else "FAIL", f"a picture comes back with {dB:.0f} dB", "" if dB > 30 else mend)


def _jpeg() -> Check:
    import simplejpeg

    picture = _picture()
    back = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(picture, quality=92, colorsubsampling="444"))
    return _seen("JPEG", _peak(picture, back), "pip install --force-reinstall simplejpeg")


def _video() -> Check:
    import av

    from worldline.stream.record import write_mp4

    picture = _picture()
    with (
        tempfile.TemporaryDirectory() as scratch,
        av.open(str(write_mp4([picture] * 5, Path(scratch) / "check.mp4"))) as container,
    ):
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if len(frames) != 5:
        return Check("H.264", "FAIL", f"{len(frames)} frames of 5 came back", "pip install --force-reinstall av")
    return _seen("H.264", _peak(picture, frames[-1]), "pip install --force-reinstall av")


def _optional(name: str) -> Check:
    if importlib.util.find_spec(name) is None:
        return Check(f"package {name}", "SKIP", "not installed", OPTIONAL[name])
    return Check(f"package {name}", "PASS", version(name))


def _chromium() -> Check:
    found = next((path for n in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(n))), None)
    if importlib.util.find_spec("playwright") is None or found is None:
        mend = "pip install 'worldline[dev]' and Chromium, to run the page's own tests"
        return Check("browser tests", "SKIP", "no Playwright, or no Chromium", mend)
    return Check("browser tests", "PASS", f"playwright {version('playwright')}, Chromium")


def _port(port: int) -> Check:
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("127.0.0.1", port))
        except OSError:
            return Check("port", "WARN", f"{port} is taken", "worldline play --port N, with another number")
    return Check("port", "PASS", f"{port} is free")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / 2**30:.1f} GiB free here"
    if free < DISK:
        return Check("disk", "WARN", text, "make room: runs and recordings are written here")
    return Check("disk", "PASS", text)
