"""Video files: exact ones give every pixel back to the readers evaluators use; browser ones play and do not vary."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.schema import ShapeError
from worldline.video import write_browser, write_exact


@pytest.fixture
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 30, 46, 3)).astype(np.uint8)


def test_exact_files_are_exact(tmp_path, clip):
    import av
    import cv2

    path = write_exact(clip, tmp_path / "a" / "clip.mp4", 16)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == 16
        read = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert np.array_equal(read, clip)
    capture = cv2.VideoCapture(str(path))
    for frame in clip:
        found, bgr = capture.read()
        assert found
        assert np.array_equal(bgr[..., ::-1], frame)


def test_browser_files_enlarge_small_pictures_and_repeat(tmp_path, clip):
    import av

    path = write_browser(clip[:, :29, :45], tmp_path / "clip.mp4", 16)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width, stream.codec_context.pix_fmt) == (174, 270, "yuv420p")
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert write_browser(clip[:, :29, :45], tmp_path / "again.mp4", 16).read_bytes() == path.read_bytes()


def test_what_is_no_clip_is_refused(tmp_path, clip):
    with pytest.raises(ShapeError, match=r"expected uint8 \[F, H, W, 3\]"):
        write_exact(clip[0], tmp_path / "x.mp4", 16)
    with pytest.raises(ShapeError, match="float64"):
        write_browser(clip / 255, tmp_path / "x.mp4", 16)
