"""Frames to mp4 and back."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from worldline.schema import ShapeError
from worldline.stream.record import write_mp4


def test_a_clip_keeps_its_frames_and_rate(tmp_path):
    import av

    frames = [np.full((32, 48, 3), 20 * i, np.uint8) for i in range(9)]
    path = write_mp4(frames, tmp_path / "clips" / "walk.mp4", fps=16, scale=2)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == 16
        got = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert [g.shape for g in got] == [(64, 96, 3)] * 9
    np.testing.assert_allclose([g.mean() for g in got], [f.mean() for f in frames], atol=4)
    with pytest.raises(ShapeError, match="uint8"):
        write_mp4([np.zeros((4, 4, 3))], tmp_path / "no.mp4")


WRITE = """
import sys, numpy as np
from worldline.stream.record import write_mp4
g = np.random.default_rng(0)
smooth = (120 + 40 * np.sin(np.arange(64) / 9)[None, :, None] + 2 * g.random((64, 64, 3))).astype(np.uint8)
write_mp4([np.roll(smooth, 3 * i, axis=1) // (1 + i // 7) for i in range(13)], sys.argv[1])
"""


def test_equal_frames_make_equal_files(tmp_path):
    """Whatever an encoder finds in memory that it did not write: glibc fills it with this pattern."""
    files = set()
    for pattern in ("1", "85", "170", "255"):
        path = tmp_path / f"{pattern}.mp4"
        subprocess.run(
            [sys.executable, "-c", WRITE, str(path)], env={**os.environ, "MALLOC_PERTURB_": pattern}, check=True
        )
        files.add(path.read_bytes())
    assert len(files) == 1
