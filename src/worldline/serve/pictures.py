"""Pictures to bytes and back: JPEG, H.264 access units for WebCodecs, and pictures that a client sent."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from worldline.schema import WorldlineError

JPEG_QUALITY = 92
MAX_PIXELS = 16 * 2**20  # of a client's picture, before anything is decoded


def jpeg(frame: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> JPEG without chroma subsampling: small pictures are enlarged by the client."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=JPEG_QUALITY, colorsubsampling="444")


def picture_of(encoded: bytes, height: int, width: int) -> np.ndarray:
    """A JPEG, PNG or WebP -> uint8 [height, width, 3], cropped at its centre. The size is read before anything is decoded,
    so that a small file cannot unfold into a huge picture. Raises WorldlineError on anything else."""
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "WEBP"))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if getattr(image, "n_frames", 1) > 1:
            raise WorldlineError("the picture is a film; expected one still picture")
        image.draft("RGB", (width, height))  # a JPEG is decoded no larger than it is needed
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS))
    except Image.DecompressionBombError as error:
        raise WorldlineError(f"the picture has too many pixels; expected at most {MAX_PIXELS}") from error
    except WorldlineError:
        raise
    except (OSError, SyntaxError, ValueError, OverflowError, MemoryError) as error:
        raise WorldlineError("the picture is not readable; expected a JPEG, a PNG or a WebP") from error


class Encoder(Protocol):
    """Frames of one connection to the bytes that the client's decoder takes in the same order."""

    name: str

    def encode(self, frame: np.ndarray, key: bool) -> tuple[bytes, bool]:
        """uint8 [H, W, 3] -> (picture, whether it can be decoded alone). key: it has to be."""
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


class Jpeg:
    """Every picture by itself."""

    name = "jpeg"

    def encode(self, frame: np.ndarray, key: bool) -> tuple[bytes, bool]:
        """uint8 [H, W, 3] -> (JPEG, True)."""
        return jpeg(frame), True

    def close(self) -> None:
        """Nothing is held."""


class Raw:
    """Pixels, for a video track that encodes them itself."""

    name = "track"

    def encode(self, frame: np.ndarray, key: bool) -> tuple[bytes, bool]:
        """uint8 [H, W, 3] -> (its bytes, True)."""
        return frame.tobytes(), True

    def close(self) -> None:
        """Nothing is held."""


class H264:
    """Constrained Baseline in Annex B, one access unit a frame, no delay; parameter sets before every key frame."""

    name = "h264"

    def __init__(self, height: int, width: int, fps: float) -> None:
        import av

        self._av, self._count = av, 0
        context: Any = av.CodecContext.create("libx264", "w")
        context.height, context.width, context.pix_fmt = height, width, "yuv420p"
        context.framerate = Fraction(fps).limit_denominator(1000)
        context.time_base = 1 / context.framerate
        context.color_range, context.colorspace = 1, 1  # limited, BT.709
        context.color_primaries = context.color_trc = 1
        context.options = {
            "preset": "superfast", "tune": "zerolatency", "profile": "baseline", "crf": "18", "forced-idr": "1",
            "g": "100000",
        }  # fmt: skip
        context.thread_count = 1  # a small picture gains nothing, and frame threads would add delay
        self._context = context

    @staticmethod
    def fits(height: int, width: int) -> bool:
        """Whether pictures of this size can be sent so: colour is halved both ways, and x264 must be in the build."""
        if height % 2 or width % 2:
            return False
        try:
            import av

            av.Codec("libx264", "w")
        except (ImportError, ValueError):
            return False
        return True

    def encode(self, frame: np.ndarray, key: bool) -> tuple[bytes, bool]:
        """uint8 [H, W, 3] -> (access unit, whether it is a key frame)."""
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        picture.pts, self._count = self._count, self._count + 1
        picture.pict_type = self._av.video.frame.PictureType.I if key else self._av.video.frame.PictureType.NONE
        packets = self._context.encode(picture)
        return b"".join(bytes(p) for p in packets), any(p.is_keyframe for p in packets)

    def close(self) -> None:
        """Flush, which frees the encoder's threads and buffers."""
        self._context.encode(None)


def encoder_of(codec: str, height: int, width: int, fps: float) -> Encoder:
    """The encoder of a codec that `codecs_for` lists, or of a video track."""
    if codec == "track":
        return Raw()
    return H264(height, width, fps) if codec == "h264" else Jpeg()


def codecs_for(height: int, width: int) -> list[str]:
    """What pictures of this size can be sent as, the better for a network first."""
    return ["h264", "jpeg"] if H264.fits(height, width) else ["jpeg"]


def h264_string(height: int, width: int, fps: float) -> str:
    """The codec string of WebCodecs: Constrained Baseline at the lowest level that fits."""
    blocks = -(-height // 16) * -(-width // 16)
    for level, most, rate in ((30, 1620, 40500), (31, 3600, 108000), (40, 8192, 245760), (51, 36864, 983040)):
        if blocks <= most and blocks * fps <= rate:
            return f"avc1.42C0{level:02X}"
    return "avc1.42C034"
