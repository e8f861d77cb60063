"""Look at a dataset: film strips with the held keys, beside a bird's-eye view of where the camera went."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldline.data.dataset import Clip, ClipDataset
from worldline.data.sources.doomrooms.maps import CELL, Map, generate
from worldline.data.sources.doomrooms.textures import COLOURS
from worldline.schema import WorldlineError

ZOOM = 3  # screen pixels a frame pixel
GAP, CAPTION = 6, 20  # pixels between rows, and for the line of text under a row
PAPER, INK, WALL = (250, 248, 244), (60, 58, 56), (90, 84, 80)
VIEW_UNITS = 900.0  # map units across the bird's-eye view, unless the path is longer
GLYPHS = {"left": "<", "right": ">"}  # turns; walking keys are shown by their letter


def contact_sheet(dataset: ClipDataset, out: str | Path, *, clips: int = 8, frames: int = 6) -> Path:
    """Write a PNG with `clips` rows, evenly spread over the dataset, each of `frames` frames evenly spread over the clip.
    Returns its path. Raises WorldlineError on fewer than one row or two frames."""
    if clips < 1 or frames < 2:
        raise WorldlineError(f"a sheet of {clips} clips x {frames} frames; expected at least 1 x 2")
    index = np.unique(np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).round().astype(int))
    rows = [_row(dataset[int(i)], frames) for i in index]
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height + GAP for r in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    out = Path(out)
    partial = out.with_name(out.name + ".tmp")
    sheet.save(partial, format="PNG")
    os.replace(partial, out)
    return out


def film_strip(clip: Clip, frames: int) -> Image.Image:
    """`frames` frames of a clip side by side, the keys that were held drawn into each."""
    picked = np.linspace(0, len(clip.frames) - 1, frames).round().astype(int)
    height, width = (ZOOM * n for n in clip.frames.shape[1:3])
    strip = Image.new("RGB", (frames * width, height))
    draw, font = ImageDraw.Draw(strip), _font(16)
    for slot, t in enumerate(picked):
        strip.paste(
            Image.fromarray(clip.frames[t]).resize((width, height), Image.Resampling.BICUBIC), (slot * width, 0)
        )
        held = " ".join(GLYPHS.get(k, k.upper()) for k in clip.controls.keys[t])
        for left, text, anchor in ((5, held, "ls"), (width - 5, str(t), "rs")):
            place = (slot * width + left, height - 6)
            draw.text(place, text, fill="white", font=font, anchor=anchor, stroke_width=2, stroke_fill="black")
    return strip


def birds_eye(clip: Clip, level: Map, pixels: int) -> Image.Image:
    """The map around a clip's path, north up, floors in their own colours: the path runs from light to dark, with a tick
    along the view every eight frames."""
    path = clip.cameras.c2w[:, :2, 3]
    side = max(VIEW_UNITS, 1.2 * float(np.ptp(path, axis=0).max()))
    low = path.mean(axis=0) - side / 2

    def at(x: float, y: float) -> tuple[float, float]:
        return (x - low[0]) / side * pixels, pixels - (y - low[1]) / side * pixels

    image = Image.new("RGB", (pixels, pixels), (214, 210, 204))
    draw = ImageDraw.Draw(image)
    for cy, cx in np.argwhere(level.cells >= 0):
        floor = COLOURS[level.rooms[int(level.cells[cy, cx])].floor_colour]
        tint = tuple((c + 2 * 255) // 3 for c in floor)
        draw.rectangle((*at(cx * CELL, (cy + 1) * CELL), *at((cx + 1) * CELL, cy * CELL)), fill=tint)
    for x1, y1, x2, y2 in level.walls():
        draw.line((*at(x1, y1), *at(x2, y2)), fill=WALL, width=2)
    for t in range(len(path) - 1):
        shade = int(200 - 200 * t / len(path))
        draw.line((*at(*path[t]), *at(*path[t + 1])), fill=(220, shade, 40), width=3)
    for t in range(0, len(path), 8):
        (x, y), (dx, dy) = path[t], clip.cameras.c2w[t, :2, 2] * 0.06 * side
        draw.line((*at(x, y), *at(x + dx, y + dy)), fill=INK, width=1)
    x, y = at(*path[0])
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=INK)
    return image


def _row(clip: Clip, frames: int) -> Image.Image:
    strip = film_strip(clip, frames)
    above = birds_eye(clip, _level(clip.map_seed), strip.height)
    row = Image.new("RGB", (above.width + GAP + strip.width, strip.height + CAPTION), PAPER)
    row.paste(above, (0, 0))
    row.paste(strip, (above.width + GAP, 0))
    text = f"{clip.id}   {clip.caption}"
    ImageDraw.Draw(row).text((above.width + GAP, strip.height + 3), text, fill=INK, font=_font(13))
    return row


@lru_cache(maxsize=16)
def _level(map_seed: int) -> Map:
    return generate(map_seed)


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
