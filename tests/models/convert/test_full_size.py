"""Files of full size as `inspect` sees them: real headers, no data behind them (the files are holes on disk)."""

from __future__ import annotations

import dataclasses
import json
import math
import struct

import pytest

from worldline.models.convert import inspect
from worldline.models.convert.keymaps import LAYOUTS
from worldline.models.convert.published import PUBLISHED
from worldline.models.convert.sizes import expected_shapes

T2V, TI2V = "wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"


def hollow(path, config, layout, group):
    """A bf16 safetensors file of that model whose data is a hole."""
    header, end = {}, 0
    for ours, shape in expected_shapes(config).items():
        size = 2 * math.prod(shape)
        name = group + LAYOUTS[layout].theirs(ours)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


@pytest.mark.parametrize(
    ("size", "changes", "layout", "group", "title", "tensors", "parameters"),
    [
        (T2V, {}, "wan", "", "original Wan", 825, 1_418_996_800),
        (T2V, {}, "diffusers", "", "diffusers", 825, 1_418_996_800),
        (
            T2V,
            {},
            "self-forcing-ema-fsdp",
            "generator_ema.",
            "Self-Forcing, Causal-Forcing or CausVid",
            825,
            1_418_996_800,
        ),
        (T2V, {"camera": "branch"}, "self-forcing", "generator.", "minWM", 885, 1_489_821_760),
        (T2V, {"camera": "branch"}, "minwm-v0.2", "", "minWM v0.2 export", 885, 1_489_821_760),
        (TI2V, {}, "wan", "", "original Wan", 825, 4_999_787_712),
        (
            TI2V,
            {"camera": "branch", "actions": 256},
            "worldplay-fsdp",
            "generator.",
            "HY-WorldPlay 5B",
            889,
            5_293_225_152,
        ),
    ],
)
def test_full_size_files(tmp_path, size, changes, layout, group, title, tensors, parameters):
    config = dataclasses.replace(PUBLISHED[size], **changes)
    report = inspect(hollow(tmp_path / "model.safetensors", config, layout, group))
    assert not report.faults
    assert report.heads_known  # a published size tells them
    assert (report.layout, report.variant, report.config) == (title, size, config)
    assert (report.tensors, report.parameters, report.nbytes) == (tensors, parameters, 2 * parameters)
