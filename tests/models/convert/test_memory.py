"""What a conversion takes in memory, measured from outside in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models.convert.conftest import write, write_shards

from worldline.models.wan import WanConfig, WanModel

# ru_maxrss would not do: a child inherits the peak of the process that forked it. VmHWM counts from exec, and "5" resets it.
MEASURE = """
import json, pathlib, sys
from worldline.models.convert import convert
def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
report = convert(sys.argv[1], sys.argv[2], which="ema")
print(json.dumps({"grown": status("VmHWM") - before, "model": report.nbytes}))
"""


@pytest.fixture(scope="module")
def state():
    """About 200 MB of weights in the proportions of Wan."""
    cfg = WanConfig(dim=512, ffn_dim=2976, num_heads=4, num_layers=10, text_dim=512, text_len=512)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in WanModel(cfg).state_dict().items()}
    return {k: torch.zeros(shape) + 0.5 for k, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "share"), [("safetensors", 0.2), ("shards", 0.2), ("torch", 1.2), ("torch with EMA", 1.2)]
)
def test_peak_memory(state, tmp_path, kind, share):
    source = tmp_path / "in"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"num_heads": 4}))
    if kind == "safetensors":
        file = write(source / "w.safetensors", state, "wan")
    elif kind == "shards":
        file = write_shards(source, state, "wan")
    else:
        more = {"generator_ema": {k: v + 1 for k, v in state.items()}} if kind.endswith("EMA") else {}
        file = write(source / "w.pt", state, "self-forcing", **more)
    command = [sys.executable, "-c", MEASURE, str(file), str(tmp_path / "out")]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert figures["model"] > 180e6
    assert figures["grown"] < share * figures["model"], figures
