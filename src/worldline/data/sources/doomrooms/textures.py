"""Our own calm textures: low-frequency patterns at low contrast, so that a room reads as a place at 64x96 pixels.

Every texture is a base colour in a pattern; walls are 64 x 192 map units with a skirting at the floor. Nothing is taken
from the game's own art.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (168, 84, 72),
    "ochre": (190, 142, 76),
    "sand": (206, 186, 146),
    "green": (104, 140, 94),
    "teal": (84, 146, 146),
    "blue": (88, 116, 168),
    "violet": (134, 104, 156),
    "grey": (142, 144, 148),
    "white": (212, 208, 200),
    "brown": (128, 96, 72),
}
WALL_HEIGHT, TILE = 192, 64
Pattern = Callable[[int, int], np.ndarray]


def _brick(h: int, w: int) -> np.ndarray:
    """Courses of 32 units, bricks of 64, staggered: brightness factors [h, w]."""
    y, x = np.mgrid[:h, :w]
    course = (y // 32) % 2
    joint = ((y % 32) < 3) | (((x + 32 * course) % 64) < 3)
    tone = 1 + 0.05 * np.where((y // 32 + (x + 32 * course) // 64) % 2, 1, -1)
    return np.where(joint, 0.74, tone)


def _panel(h: int, w: int) -> np.ndarray:
    """A framed panel, 64 wide and 96 high."""
    y, x = np.mgrid[:h, :w]
    px, py = np.minimum(x % 64, 63 - x % 64), np.minimum(y % 96, 95 - y % 96)
    edge = np.minimum(px, py)
    return np.select([edge < 3, edge < 10, edge < 13], [0.72, 1.02, 0.84], 0.95)


def _plank(h: int, w: int) -> np.ndarray:
    """Upright boards of 32 units."""
    x = np.mgrid[:h, :w][1]
    return np.where(x % 32 < 3, 0.74, 1 + 0.06 * np.where((x // 32) % 2, 1, -1))


def _plaster(h: int, w: int) -> np.ndarray:
    """Plain above a wainscot line at 64 units."""
    y = np.mgrid[:h, :w][0]
    up = h - 1 - y
    return np.select([(up >= 60) & (up < 68), up < 60], [0.66, 0.84], 1.0)


def _stone(h: int, w: int) -> np.ndarray:
    """Large square blocks of 64 units."""
    y, x = np.mgrid[:h, :w]
    joint = ((y % 64) < 3) | ((x % 64) < 3)
    return np.where(joint, 0.76, 1.0)


def _tiles(h: int, w: int) -> np.ndarray:
    """Checker of 32 units, gentle."""
    y, x = np.mgrid[:h, :w]
    return np.where((y // 32 + x // 32) % 2, 1.05, 0.86)


def _boards(h: int, w: int) -> np.ndarray:
    """Floor boards of 16 units, pairs of tones."""
    y = np.mgrid[:h, :w][0]
    return np.where(y % 32 < 2, 0.78, np.where((y // 32) % 2, 1.04, 0.96))


def _slabs(h: int, w: int) -> np.ndarray:
    """One 64-unit slab with a joint."""
    y, x = np.mgrid[:h, :w]
    return np.where((y < 3) | (x < 3), 0.78, 1.0)


def _carpet(h: int, w: int) -> np.ndarray:
    """Plain."""
    return np.ones((h, w))


WALLS: dict[str, Pattern] = {"brick": _brick, "panelled": _panel, "plank": _plank, "plaster": _plaster, "stone": _stone}
FLOORS: dict[str, Pattern] = {"tiled": _tiles, "board": _boards, "slab": _slabs, "carpet": _carpet}


def _paint(factor: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.clip(factor[..., None] * np.array(colour, dtype=np.float64), 0, 255).astype(np.uint8)


def wall(pattern: str, colour: str) -> np.ndarray:
    """uint8 [192, 64, 3]; the lowest 10 units are a dark skirting."""
    factor = WALLS[pattern](WALL_HEIGHT, TILE).astype(np.float64)
    factor[-10:] = 0.58
    return _paint(factor, COLOURS[colour])


def floor(pattern: str, colour: str) -> np.ndarray:
    """uint8 [64, 64, 3], a little darker than walls of the same colour."""
    return _paint(0.82 * FLOORS[pattern](TILE, TILE), COLOURS[colour])


def _ceiling_colour(colour: str) -> tuple[int, int, int]:
    r, g, b = (int(0.45 * c + 0.55 * 205) for c in COLOURS[colour])
    return r, g, b


def ceiling(colour: str) -> np.ndarray:
    """uint8 [64, 64, 3], a plain light tone of the room's colour with a faint cross."""
    y, x = np.mgrid[:TILE, :TILE]
    factor = np.where((y < 4) | (x < 4), 0.8, 0.92)
    return _paint(factor, _ceiling_colour(colour))


def picture(colour: str, ground: str, pattern: str) -> np.ndarray:
    """A framed picture hung on a wall of (pattern, ground): uint8 [192, 64, 3]."""
    image = wall(pattern, ground)
    top, bottom = WALL_HEIGHT - 104, WALL_HEIGHT - 48
    image[top:bottom, 8:56] = (70, 52, 40)
    image[top + 5 : bottom - 5, 13:51] = COLOURS[colour]
    image[(top + bottom) // 2 : bottom - 5, 13:51] = np.array(COLOURS[colour]) * 6 // 10
    return image


def door(colour: str) -> np.ndarray:
    """A closed door with a frame: uint8 [192, 64, 3]."""
    image = wall("plaster", "white")
    image[-116:] = (74, 56, 44)
    image[-108:, 8:56] = COLOURS[colour]
    image[-96:-60, 16:48] = np.array(COLOURS[colour]) * 8 // 10
    image[-50:-14, 16:48] = np.array(COLOURS[colour]) * 8 // 10
    image[-58:-52, 44:50] = (220, 200, 120)
    return image


SIDE_SHADE = 0.84  # walls that face east or west: corners stay visible without any lighting


def texture_set() -> dict[str, np.ndarray]:
    """Every texture by its lump name (at most 8 characters); a trailing S marks the shaded twin of a wall texture."""
    names = list(COLOURS)
    walls = {wall_name(p, c): wall(p, c) for p in WALLS for c in names}
    walls |= {
        picture_name(p, c): picture(names[(i + 5) % len(names)], c, p) for p in WALLS for i, c in enumerate(names)
    }
    walls |= {f"D{i}": door(c) for i, c in enumerate(names)}
    shaded = {f"{name}S": (image * SIDE_SHADE).astype(np.uint8) for name, image in walls.items()}
    floors = {f"F{p[:3].upper()}{i}": floor(p, c) for p in FLOORS for i, c in enumerate(names)}
    stored = {name: _store(image) for name, image in (walls | shaded).items()}
    return stored | floors | {f"C{i}": ceiling(c) for i, c in enumerate(names)}


def _store(image: np.ndarray) -> np.ndarray:
    """A wall texture as the game must get it: 256 rows, the upper 64 (never seen) in the colour of the skirting.

    The game draws one texel past the lower end of a wall. In a texture whose height is a power of two that wraps to the
    top; in any other it may read foreign memory, and frames would depend on where the program happens to lie.
    """
    return np.concatenate([np.repeat(image[-1:], 256 - WALL_HEIGHT, axis=0), image])


def wall_name(pattern: str, colour: str) -> str:
    """Lump name of a wall texture."""
    return f"W{pattern[:3].upper()}{list(COLOURS).index(colour)}"


def picture_name(pattern: str, colour: str) -> str:
    """Lump name of the same wall with a picture on it."""
    return f"P{pattern[:3].upper()}{list(COLOURS).index(colour)}"


def palette() -> np.ndarray:
    """256 colours, uint8 [256, 3], the game draws through: a brightness ramp for every wall and ceiling colour, so that a
    dimmed surface keeps its hue."""
    walls = [np.array(c) * f for c in COLOURS.values() for f in np.linspace(0.30, 1.08, 20)]
    ceilings = [np.array(_ceiling_colour(c)) * f for c in COLOURS for f in np.linspace(0.55, 0.95, 5)]
    out = np.zeros((256, 3), dtype=np.uint8)
    body = np.clip(np.stack(walls + ceilings), 0, 255).astype(np.uint8)
    out[1 : 1 + len(body)] = body
    out[251:254] = [(74, 56, 44), (52, 40, 32), (220, 200, 120)]
    out[255] = 255
    return out


def png(image: np.ndarray) -> bytes:
    """PNG file bytes of a uint8 [h, w, 3] image."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
