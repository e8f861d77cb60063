"""Held keys drawn onto frames: caps that light up, so that a clip shows what was asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from worldline.schema import ShapeError, WorldlineError

if TYPE_CHECKING:
    from PIL.Image import Image

# Places of the caps in cap widths: columns from the left (or, negative, from the right) edge, rows from the bottom.
WALKING = {"w": (1, 1), "a": (0, 0), "s": (1, 0), "d": (2, 0)}
TURNING = {"left": (-3, 0), "right": (-1, 0)}
RARE = {"up": (-2, 1), "down": (-2, 0), "u": (4, 1), "dn": (4, 0)}  # drawn where a clip uses one of its pair
PAIRS = {"up": "down", "down": "up", "u": "dn", "dn": "u"}
ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # where they point, y down
IDLE, HELD = (20, 22, 28, 110), (255, 255, 255, 225)
IDLE_INK, HELD_INK = (255, 255, 255, 170), (20, 22, 28, 255)
CAPS_HIGH = 8.5  # caps in a frame's height


def draw_keys(frames: Iterable[np.ndarray], keys: Sequence[Sequence[str]], scale: int = 4) -> Iterator[np.ndarray]:
    """frames: uint8 [H, W, 3], one for each row of `keys` (what is held while it came about) -> the frames enlarged
    `scale` times, uint8 [scale H, scale W, 3], with the caps of the keys on them.

    Raises WorldlineError on a key there is no cap for or a scale under 1, ShapeError where there are more frames than
    rows.
    """
    from PIL import Image

    places = {**WALKING, **TURNING, **RARE}
    used = {key for row in keys for key in row}
    if unknown := sorted(used - set(places)):
        raise WorldlineError(f"keys {unknown} have no cap; expected some of {' '.join(places)}")
    if scale < 1:
        raise WorldlineError(f"scale {scale}; expected a whole number of at least 1")
    shown = {k: at for k, at in places.items() if k not in RARE or k in used or PAIRS[k] in used}
    return _drawn(frames, keys, scale, shown, Image.Resampling.BICUBIC)


def _drawn(
    frames: Iterable[np.ndarray], keys: Sequence[Sequence[str]], scale: int, shown: dict[str, tuple[int, int]], how: int
) -> Iterator[np.ndarray]:
    from PIL import Image

    layers: dict[frozenset[str], Image.Image] = {}
    for i, frame in enumerate(frames):
        if i >= len(keys):
            raise ShapeError(f"more frames than the {len(keys)} rows of keys; expected one row a frame")
        size = (frame.shape[1] * scale, frame.shape[0] * scale)
        large = Image.fromarray(frame).resize(size, Image.Resampling(how)).convert("RGBA")
        held = frozenset(keys[i])
        if held not in layers:
            layers[held] = _caps(size, shown, held)
        yield np.asarray(Image.alpha_composite(large, layers[held]).convert("RGB"))


def _caps(size: tuple[int, int], shown: dict[str, tuple[int, int]], held: frozenset[str]) -> Image:
    """The caps on a transparent layer of `size` (width, height)."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = size
    cap = height / CAPS_HIGH
    gap, margin = cap * 0.12, cap * 0.35
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    font = ImageFont.load_default(size=max(6, round(cap * 0.55)))
    for key, (column, row) in shown.items():
        left = margin + column * (cap + gap) if column >= 0 else width - margin + column * (cap + gap) + gap
        top = height - margin - (row + 1) * cap - row * gap
        fill, ink = (HELD, HELD_INK) if key in held else (IDLE, IDLE_INK)
        draw.rounded_rectangle((left, top, left + cap, top + cap), radius=cap * 0.2, fill=fill)
        centre = (left + cap / 2, top + cap / 2)
        if key in ARROWS:
            draw.polygon(_arrow(centre, ARROWS[key], cap * 0.26), fill=ink)
        else:
            draw.text(centre, key.upper(), fill=ink, font=font, anchor="mm")
    return layer


def _arrow(centre: tuple[float, float], towards: tuple[int, int], size: float) -> list[tuple[float, float]]:
    """A triangle that points `towards` a side."""
    (x, y), (dx, dy) = centre, towards
    return [
        (x + size * dx, y + size * dy),
        (x - size * (dx * 0.7 - dy), y - size * (dy * 0.7 - dx)),
        (x - size * (dx * 0.7 + dy), y - size * (dy * 0.7 + dx)),
    ]
