"""Frames to mp4 and back."""

from __future__ import annotations

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


def test_equal_frames_make_equal_files(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    frames = [np.roll(blocks, 3 * i, axis=1) for i in range(13)]
    files = {write_mp4(frames, tmp_path / f"{i}.mp4").read_bytes() for i in range(12)}
    assert len(files) == 1
