"""Procedural maps: rooms on a lattice, joined by corridors, carved from a grid of 64-unit cells and written as UDMF."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

import numpy as np

from worldline.data.sources.doomrooms.textures import (
    COLOURS,
    FLOORS,
    WALLS,
    palette,
    picture_name,
    png,
    texture_set,
    wall_name,
)

CELL = 64  # map units a grid cell
BLOCK = 11  # cells a lattice block: one room and its margin


@dataclass(frozen=True)
class Room:
    """One sector: cells [y0, y1) x [x0, x1), and its look."""

    x0: int
    y0: int
    x1: int
    y1: int
    pattern: str
    colour: str
    floor: str
    floor_colour: str
    height: int
    kind: str  # "room" or "corridor"

    def phrase(self) -> str:
        """Static words for captions: the vocabulary is the generator's own."""
        size = (self.x1 - self.x0) * (self.y1 - self.y0)
        noun = "corridor" if self.kind == "corridor" else ("hall" if size >= 56 else "room")
        walls = {"panelled": "panels", "brick": "bricks", "plank": "planks", "plaster": "plaster", "stone": "stone"}
        return f"{noun} with {self.colour} {walls[self.pattern]} and a {self.floor_colour} {self.floor} floor"


@dataclass(frozen=True)
class Map:
    """A generated map. cells: int [Y, X], index into rooms or -1 where solid; accents: wall texture of some solid cells."""

    seed: int
    cells: np.ndarray
    rooms: tuple[Room, ...]
    accents: dict[tuple[int, int], str]

    def room_at(self, x: float, y: float) -> int:
        """Index of the room at map units (x, y), -1 where solid or outside."""
        cx, cy = int(x // CELL), int(y // CELL)
        Y, X = self.cells.shape
        return int(self.cells[cy, cx]) if 0 <= cx < X and 0 <= cy < Y else -1

    def caption(self, x: float, y: float) -> str:
        """What the place at (x, y) is, and what it leads to."""
        here = self.room_at(x, y)
        near = [n for n in self._neighbours(here) if self.rooms[n].kind == "room"] or self._neighbours(here)
        text = f"a {self.rooms[here].phrase()}"
        return f"{text}, next to a {self.rooms[near[0]].colour} {self.rooms[near[0]].kind}" if near else text

    def _neighbours(self, index: int) -> list[int]:
        """Rooms reachable within two doorways, nearest first."""
        touching: dict[int, set[int]] = {}
        for a, b in (
            (self.cells[:-1].ravel(), self.cells[1:].ravel()),
            (self.cells[:, :-1].ravel(), self.cells[:, 1:].ravel()),
        ):
            for i, j in set(zip(a.tolist(), b.tolist(), strict=True)):
                if i != j and i >= 0 and j >= 0:
                    touching.setdefault(i, set()).add(j)
                    touching.setdefault(j, set()).add(i)
        first = sorted(touching.get(index, set()))
        second = sorted({k for j in first for k in touching[j]} - {index, *first})
        return first + second

    def walls(self) -> list[tuple[float, float, float, float]]:
        """Solid edges in map units (x1, y1, x2, y2), for ray casting and bird's-eye views."""
        return [(e.x1 * CELL, e.y1 * CELL, e.x2 * CELL, e.y2 * CELL) for e in self.edges() if e.back < 0]

    def edges(self) -> list[Edge]:
        """Every boundary of a carved cell, front side (the cell) on the right of v1 -> v2."""
        out, (Y, X) = [], self.cells.shape
        for y in range(Y):
            for x in range(X):
                room = int(self.cells[y, x])
                if room < 0:
                    continue
                around = {
                    (x, y - 1): (x + 1, y, x, y),  # south side
                    (x + 1, y): (x + 1, y + 1, x + 1, y),  # east
                    (x, y + 1): (x, y + 1, x + 1, y + 1),  # north
                    (x - 1, y): (x, y, x, y + 1),  # west
                }
                for (nx, ny), (x1, y1, x2, y2) in around.items():
                    other = int(self.cells[ny, nx])
                    if other == room or (other >= 0 and other < room):
                        continue  # an inner edge, or the neighbour writes it
                    texture = self.accents.get((ny, nx)) if other < 0 else None
                    look = self.rooms[room]
                    shade = "S" if x1 == x2 else ""
                    out.append(
                        Edge(x1, y1, x2, y2, room, other, (texture or wall_name(look.pattern, look.colour)) + shade)
                    )
        return out


@dataclass(frozen=True)
class Edge:
    """A wall (back -1) or an opening between two rooms, in cells."""

    x1: int
    y1: int
    x2: int
    y2: int
    front: int
    back: int
    texture: str


def generate(seed: int, lattice: int = 3) -> Map:
    """A map of lattice x lattice rooms, all reachable, deterministic for its seed."""
    rng = np.random.default_rng([seed, 0x726F6F6D])
    size = lattice * BLOCK + 1
    cells = np.full((size, size), -1, dtype=np.int64)
    rooms: list[Room] = []

    def look(kind: str) -> dict[str, object]:
        colour = str(rng.choice(list(COLOURS)))
        return {
            "pattern": str(rng.choice(list(WALLS))),
            "colour": colour,
            "floor": str(rng.choice(list(FLOORS))),
            "floor_colour": str(rng.choice([c for c in COLOURS if c != colour])),
            "height": int(rng.choice([128, 144, 160, 176] if kind == "room" else [112, 120])),
            "kind": kind,
        }

    for by in range(lattice):
        for bx in range(lattice):
            w, h = (int(v) for v in rng.integers(6, BLOCK - 1, size=2))
            x0 = bx * BLOCK + 1 + int(rng.integers(0, BLOCK - w))
            y0 = by * BLOCK + 1 + int(rng.integers(0, BLOCK - h))
            cells[y0 : y0 + h, x0 : x0 + w] = len(rooms)
            rooms.append(Room(x0, y0, x0 + w, y0 + h, **look("room")))  # type: ignore[arg-type]
    for a, b in _links(lattice, rng):
        _corridor(cells, rooms, a, b, look, rng)
    _pillars(cells, rooms[: lattice * lattice], rng)
    return Map(seed, cells, tuple(rooms), _accents(cells, rooms, rng))


def _links(n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """A spanning tree of the lattice plus a third of the other neighbour pairs, so that loops exist."""
    pairs = [(i, i + 1) for i in range(n * n) if (i + 1) % n] + [(i, i + n) for i in range(n * n - n)]
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    group, chosen = list(range(n * n)), []
    for a, b in order:
        joins = group[a] != group[b]
        if joins:
            old, new = group[b], group[a]
            group = [new if g == old else g for g in group]
        if joins or rng.random() < 0.34:
            chosen.append((a, b))
    return chosen


def _corridor(cells: np.ndarray, rooms: list[Room], a: int, b: int, look, rng: np.random.Generator) -> None:
    """Carve a two-cell wide passage between two lattice neighbours, as a sector of its own."""
    A, B = rooms[a], rooms[b]
    horizontal = b == a + 1
    if not horizontal:
        lo, hi = max(A.x0, B.x0), min(A.x1, B.x1)
        at = int(rng.integers(lo, hi - 1)) if hi - lo >= 2 else None
        box = None if at is None else (at, A.y1, at + 2, B.y0)
    else:
        lo, hi = max(A.y0, B.y0), min(A.y1, B.y1)
        at = int(rng.integers(lo, hi - 1)) if hi - lo >= 2 else None
        box = None if at is None else (A.x1, at, B.x0, at + 2)
    if box is None:
        return
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return
    cells[y0:y1, x0:x1] = len(rooms)
    rooms.append(Room(x0, y0, x1, y1, **look("corridor")))


def _pillars(cells: np.ndarray, rooms: list[Room], rng: np.random.Generator) -> None:
    """One or two solid cells inside large rooms, off the walls."""
    for room in rooms:
        if room.x1 - room.x0 >= 7 and room.y1 - room.y0 >= 7:
            for _ in range(int(rng.integers(0, 3))):
                x = int(rng.integers(room.x0 + 2, room.x1 - 2))
                y = int(rng.integers(room.y0 + 2, room.y1 - 2))
                cells[y, x] = -1


def _accents(cells: np.ndarray, rooms: list[Room], rng: np.random.Generator) -> dict[tuple[int, int], str]:
    """Pictures and doors on some solid cells that face a room."""
    out: dict[tuple[int, int], str] = {}
    Y, X = cells.shape
    for y in range(1, Y - 1):
        for x in range(1, X - 1):
            if cells[y, x] >= 0:
                continue
            faces = [int(c) for c in (cells[y - 1, x], cells[y + 1, x], cells[y, x - 1], cells[y, x + 1]) if c >= 0]
            if not faces:
                continue
            room, draw = rooms[faces[0]], rng.random()
            if draw < 0.16:
                out[(y, x)] = picture_name(room.pattern, room.colour)
            elif draw < 0.22:
                out[(y, x)] = f"D{int(rng.integers(len(COLOURS)))}"
    return out


def largest_component(cells: np.ndarray) -> np.ndarray:
    """bool [Y, X]: the largest connected set of carved cells."""
    best = np.zeros(cells.shape, dtype=bool)
    seen = cells < 0
    for start in zip(*np.nonzero(~seen), strict=True):
        if seen[start]:
            continue
        part, queue = np.zeros_like(best), deque([start])
        seen[start] = True
        while queue:
            y, x = queue.popleft()
            part[y, x] = True
            for ny, nx in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if not seen[ny, nx]:
                    seen[ny, nx] = True
                    queue.append((ny, nx))
        if part.sum() > best.sum():
            best = part
    return best


def udmf(level: Map) -> str:
    """The TEXTMAP lump: vertices, linedefs, sidedefs, sectors, one player start."""
    vertices: dict[tuple[int, int], int] = {}
    lines: list[str] = []
    sides: list[str] = []

    def vertex(x: int, y: int) -> int:
        return vertices.setdefault((x, y), len(vertices))

    for e in level.edges():
        v1, v2 = vertex(e.x1, e.y1), vertex(e.x2, e.y2)
        front = len(sides)
        if e.back < 0:
            sides.append(f'sidedef {{ sector={e.front}; texturemiddle="{e.texture}"; }}')
            lines.append(f"linedef {{ v1={v1}; v2={v2}; sidefront={front}; blocking=true; dontpegbottom=true; }}")
        else:
            for sector in (e.front, e.back):
                name = wall_name(level.rooms[sector].pattern, level.rooms[sector].colour) + (
                    "S" if e.x1 == e.x2 else ""
                )
                sides.append(f'sidedef {{ sector={sector}; texturetop="{name}"; texturebottom="{name}"; }}')
            lines.append(f"linedef {{ v1={v1}; v2={v2}; sidefront={front}; sideback={front + 1}; twosided=true; }}")
    names = list(COLOURS)
    sectors = [
        f'sector {{ heightfloor=0; heightceiling={r.height}; texturefloor="F{r.floor[:3].upper()}{names.index(r.floor_colour)}"; '
        f'textureceiling="C{names.index(r.colour)}"; lightlevel=255; }}'
        for r in level.rooms
    ]
    spawn = largest_component(level.cells)
    y, x = (int(v) for v in np.argwhere(spawn)[0])
    thing = (
        f"thing {{ x={x * CELL + 32}.0; y={y * CELL + 32}.0; angle=0; type=1; skill1=true; skill2=true; skill3=true; "
    )
    thing += "skill4=true; skill5=true; single=true; coop=true; dm=true; class1=true; }"
    points = [f"vertex {{ x={x * CELL}.0; y={y * CELL}.0; }}" for x, y in vertices]
    return "\n".join(['namespace = "zdoom";', *points, *lines, *sides, *sectors, thing]) + "\n"


def write_wad(path: str, level: Map) -> None:
    """A PWAD with the map as MAP01, our palette and our textures."""
    textures = texture_set()
    lumps: list[tuple[str, bytes]] = [("PLAYPAL", palette().tobytes() * 14)]
    # Every light level maps a colour to itself: the game's own table would mix up our palette.
    lumps.append(("COLORMAP", bytes(range(256)) * 34))
    lumps += [("TX_START", b""), *((name, png(image)) for name, image in textures.items()), ("TX_END", b"")]
    lumps += [("MAP01", b""), ("TEXTMAP", udmf(level).encode()), ("ENDMAP", b"")]
    body, directory, offset = [], [], 12
    for name, data in lumps:
        directory.append(struct.pack("<ii8s", offset, len(data), name.encode()))
        body.append(data)
        offset += len(data)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sii", b"PWAD", len(lumps), offset))
        file.write(b"".join(body) + b"".join(directory))
