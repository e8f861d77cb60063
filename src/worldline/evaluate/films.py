"""Frames as a picture: rows of every n-th frame, enlarged without smoothing, each row with its label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worldline.schema import ShapeError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = (128, 132, 142, 255)  # readable on light and on dark pages; the sheet itself is transparent
GAP = 6


def contact_sheet(rows: list[tuple[str, np.ndarray]], every: int = 4, scale: int = 3) -> Image:
    """rows: (label, frames uint8 [F, H, W, 3]) of one frame size; frames 0, every, 2 every .. side by side, each frame
    `scale` times as large -> RGBA picture.

    Raises ShapeError where there is no row or a row has frames of another size.
    """
    from PIL import Image, ImageDraw, ImageFont

    sizes = {frames.shape[1:] for _, frames in rows}
    if len(sizes) != 1:
        raise ShapeError(f"rows of frame sizes {sorted(sizes)}: expected at least one row, all of one size")
    ((height, width, _),) = sizes
    shown = [frames[::every] for _, frames in rows]
    font = ImageFont.load_default(size=9 * scale)
    label_height = 13 * scale
    row_height = label_height + height * scale + GAP
    columns = max(len(frames) for frames in shown)
    sheet = Image.new("RGBA", (columns * (width * scale + GAP) - GAP, len(rows) * row_height - GAP), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, ((label, _), frames) in enumerate(zip(rows, shown, strict=True)):
        top = i * row_height
        draw.text((0, top), label, fill=GREY, font=font)
        for j, frame in enumerate(frames):
            large = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(large, (j * (width * scale + GAP), top + label_height))
    return sheet
