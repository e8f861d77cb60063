"""What this machine does at best, measured: matrix products, memory, small operations; and its stamp on a result."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from worldline.nn.packed import PackedConv2d, PackedLinear, packs

WIDTHS = (256, 1536)  # of the square weights that products are measured with: nano's and Wan 1.3B's
ROWS = (16, 64, 256, 1024)  # tokens of one product
PICTURES = ((8, 12), (32, 48), (120, 208))  # inside a decoder
COPIED = 128 << 20  # bytes, far more than any cache holds


@dataclass(frozen=True)
class Rates:
    """products: FLOP/s by (rows, width) of a linear layer in the compute type, laid out as streams lay it out; convolutions:
    FLOP/s by pixels of the picture, of 3 x 3 on 64 channels; memory: bytes/s read and written by a copy."""

    products: dict[tuple[int, int], float]
    convolutions: dict[int, float]
    memory: float

    @property
    def peak(self) -> float:
        """FLOP/s of the best product there was."""
        return max(self.products.values())

    def product(self, rows: int, width: int) -> float:
        """FLOP/s of a product of `rows` tokens with a weight of about width x width, between the measured ones."""
        near = min(WIDTHS, key=lambda w: abs(np.log(w / width)))
        return float(np.interp(np.log(max(rows, 1)), np.log(ROWS), [self.products[r, near] for r in ROWS]))

    def convolution(self, pixels: int) -> float:
        """FLOP/s of a convolution over so many pixels, between the measured ones."""
        known = sorted(self.convolutions)
        return float(np.interp(np.log(max(pixels, 1)), np.log(known), [self.convolutions[p] for p in known]))


@torch.inference_mode()
def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure on the number of threads that is set. Takes about two seconds of a CPU."""
    products = {(r, w): _product(r, w, device, dtype) for w in WIDTHS for r in ROWS}
    a = torch.ones(COPIED // 4, device=device)
    b = torch.empty_like(a)
    memory = 2 * COPIED / best(lambda: b.copy_(a), device, seconds=0.2)
    convolutions = {h * w: _convolution(h, w, device, dtype) for h, w in PICTURES}
    return Rates(products, convolutions, memory)


def _convolution(height: int, width: int, device: torch.device, dtype: torch.dtype) -> float:
    conv = nn.Conv2d(64, 64, 3, padding=1, device=device, dtype=dtype)
    layer: nn.Module = PackedConv2d(conv) if packs(conv) else conv
    x = torch.randn(1, 64, height, width, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return 2.0 * height * width * 64 * 64 * 9 / best(lambda: layer(x), device, seconds=0.1)


def _product(rows: int, width: int, device: torch.device, dtype: torch.dtype) -> float:
    linear = nn.Linear(width, width, device=device, dtype=dtype)
    layer: nn.Module = PackedLinear(linear) if packs(linear) else linear
    x = torch.randn(rows, width, device=device, dtype=dtype)
    return 2.0 * rows * width * width / best(lambda: layer(x), device, seconds=0.1)


def best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of as many runs as fit, at least five."""
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while len(found) < 5 or time.perf_counter() < stop:
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begin)
    return min(found)


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def stamp(device: torch.device) -> dict[str, Any]:
    """Where and when figures were made, without names of hosts or people."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "worldline": version("worldline"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_bytes(device)[0] / 2**30, 1),
        "load_average": load,  # of the last minute: above `cores`, the figures are those of a busy machine
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """(all, free) of a device's memory; of a CPU, free is what may be had without swapping."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        return whole, free
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def commit() -> str:
    """The commit of the source tree that this package runs from, `+` where it was changed; empty without one."""
    here = Path(__file__).parent
    if not (here.parents[2] / ".git").exists():
        return ""
    try:
        asked = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(asked, cwd=here, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
