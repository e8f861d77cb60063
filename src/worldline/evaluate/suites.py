"""The suites: which scripts, on which maps, how many. Everything here is fixed by numbers; nothing is rendered.

A case is one episode of one suite: a map, a start, a control track, the frames that matter (marks), and the seed of the
model's noise. Seeds are in assets/evaluation/seeds.json; no training may use the maps of the splits `ood-map` and `ood-look`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldline.evaluate import scripts
from worldline.schema import Controls, WorldlineError

if TYPE_CHECKING:
    from worldline.data.sources.doomrooms.engine import Spawn
    from worldline.data.sources.doomrooms.maps import Map

SEEDS = Path(__file__).parents[1] / "assets" / "evaluation" / "seeds.json"
PROTOCOL = 1  # of suites, scripts and seeds; results of two protocols are not tabulated together
FPS = 16
SPLITS = ("id", "ood-map", "ood-look")
HEADLINE = "ood-map"  # the split of every suite but S10
START_FAULTS = ("", "noise", "blur", "black", "prompt")

ABOUT = {
    "S1": "single: each of eight primitives for two seconds",
    "S2": "prbs: pseudo-random turning, then turning and walking together",
    "S3": "pan-return: left by an angle and back",
    "S4": "spin: one and two whole turns on the spot",
    "S5": "square: ahead and a quarter turn, four times",
    "S6": "alternate: to and fro, twenty times",
    "S7": "roam: held keys as a person holds them, no wall met",
    "S8": "idle: no key at all",
    "S9": "disturb: something unusual, then turning as in S2",
    "S10": "splits: S2, S3 and a short S7 on maps of training and on unseen colours",
    "S11": "marathon: S7 for five minutes",
}


@dataclass(frozen=True)
class Case:
    """One episode. marks: named frames; look: what the simulator's picture is put through; start: what the given start
    image is put through; pair: the case this one is compared with (the undisturbed twin of S9)."""

    id: str
    suite: str
    variant: str
    split: str
    map_seed: int
    spawn: Spawn
    controls: Controls
    marks: Mapping[str, list[int]] = field(default_factory=dict)
    seed: int = 0
    look: str = ""
    start: str = ""
    pair: str = ""

    def cut(self, frames: int) -> Case:
        """The first `frames` controls of it, with the marks that lie within them; itself where it is no longer."""
        if frames >= len(self.controls):
            return self
        marks = {name: at for name, at in self.marks.items() if max(at) <= frames}
        return replace(self, controls=self.controls[:frames], marks=marks)

    def fingerprint(self) -> str:
        """12 hex digits of all that decides what the simulator shows and the model is given."""
        digest = hashlib.sha256()
        for part in (self.controls.move, self.controls.look):
            digest.update(np.ascontiguousarray(part, dtype=np.float32).tobytes())
        said = [self.id, self.map_seed, self.spawn.x, self.spawn.y, self.spawn.angle, self.seed, self.look, self.start]
        said += [[list(k) for k in self.controls.keys], sorted(self.marks.items())]
        digest.update(json.dumps(said).encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Entry:
    """`count` cases of one variant of a suite."""

    suite: str
    variant: str
    count: int
    split: str = HEADLINE
    frames: int = 0  # where a script has no length of its own


PRIMITIVES = tuple(scripts.PRIMITIVES)
DISTURBANCES = (
    "twin",
    "burst",
    "contradict",
    "noop",
    "wall",
    "start-noise",
    "start-blur",
    "start-black",
    "start-prompt",
)


def _each(suite: str, variants: tuple[str, ...], count: int, split: str = HEADLINE, frames: int = 0) -> list[Entry]:
    return [Entry(suite, v, count, split, frames) for v in variants]


def _splits(count: int, frames: int) -> list[Entry]:
    """S10: the same scripts on the other two splits."""
    return [
        entry
        for split in ("id", "ood-look")
        for entry in (
            Entry("S10", "yaw", count, split, frames),
            Entry("S10", "pan-90", count, split),
            Entry("S10", "roam", count, split, frames),
        )
    ]


PANS = ("pan-30", "pan-60", "pan-90", "pan-180")
PRESETS: dict[str, list[Entry]] = {
    "smoke": [
        Entry("S2", "yaw", 2, frames=96),
        Entry("S2", "yaw+forward", 1, frames=96),
        *_each("S3", ("pan-30", "pan-60"), 1),
        Entry("S7", "roam", 2, frames=72),
    ],
    "quick": [
        *_each("S1", PRIMITIVES, 2, frames=32),
        Entry("S2", "yaw", 6, frames=160),
        Entry("S2", "yaw+forward", 4, frames=160),
        *_each("S3", PANS, 2),
        *_each("S4", ("spin-1",), 2),
        Entry("S5", "square", 2),
        *_each("S6", ("forward", "yaw"), 1),
        Entry("S7", "roam", 8, frames=136),
        Entry("S8", "idle", 2, frames=160),
        *_each("S9", ("twin", "burst", "noop", "wall", "start-noise"), 1),
        *_splits(1, 136),
    ],
    "full": [
        *_each("S1", PRIMITIVES, 16, frames=32),
        *_each("S2", ("yaw", "yaw+forward"), 16, frames=240),
        *_each("S3", PANS, 12),
        *_each("S4", ("spin-1",), 12),
        *_each("S4", ("spin-2",), 6),
        Entry("S5", "square", 16),
        *_each("S6", ("forward", "yaw"), 6),
        Entry("S7", "roam", 24, frames=960),
        Entry("S8", "idle", 8, frames=320),
        *_each("S9", DISTURBANCES, 8),
        *_splits(4, 240),
        Entry("S11", "roam", 4, frames=4800),
    ],
    "stages": [
        Entry("S2", "yaw", 8, frames=96),
        Entry("S2", "yaw+forward", 6, frames=96),
        Entry("S7", "roam", 10, frames=72),
    ],
}


@cache
def seeds() -> dict[str, list[int]]:
    """Map seeds of every split."""
    listed: dict[str, list[int]] = json.loads(SEEDS.read_text())["maps"]
    return listed


def seeds_hash() -> str:
    """sha256 of the seed lists, as stamped into results."""
    return hashlib.sha256(json.dumps(seeds(), sort_keys=True).encode()).hexdigest()[:12]


def preset(name: str, suites: tuple[str, ...] = ()) -> list[Entry]:
    """The entries of a preset, of some suites only if given. Raises WorldlineError on an unknown name."""
    if name not in PRESETS:
        raise WorldlineError(f"suite {name!r}; expected one of {', '.join(PRESETS)}")
    if unknown := sorted(set(suites) - set(ABOUT)):
        raise WorldlineError(f"suites {unknown}; expected some of {', '.join(ABOUT)}")
    entries = [e for e in PRESETS[name] if not suites or e.suite in suites]
    if not entries:
        raise WorldlineError(f"preset {name} has none of {', '.join(suites)}; use a larger preset")
    return entries


def cases(entries: list[Entry]) -> list[Case]:
    """All cases, in order. The same entry gives the same cases in every preset."""
    return [_case(entry, index) for entry in entries for index in range(entry.count)]


def suite_hash(made: list[Case]) -> str:
    """12 hex digits of a list of cases and the protocol."""
    text = json.dumps([PROTOCOL, seeds_hash(), [c.fingerprint() for c in made]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=64)
def level(map_seed: int) -> Map:
    """The map of a seed."""
    from worldline.data.sources.doomrooms.maps import generate

    return generate(map_seed)


def _case(entry: Entry, index: int) -> Case:
    maps = seeds()[entry.split]
    name = f"{entry.suite}-{entry.variant}-{index:03d}"
    if entry.suite == "S10":
        name = f"S10-{entry.split}-{entry.variant}-{index:03d}"
    # Cases of S9 of one index share map, place and script, so that they can be compared.
    told = f"{entry.suite}-{'all' if entry.suite == 'S9' else entry.variant}-{index}"
    draw = int.from_bytes(hashlib.sha256(f"{PROTOCOL}/{entry.split}/{told}".encode()).digest()[:6], "little")
    rng = np.random.default_rng(draw)
    map_seed = maps[draw % len(maps)]
    spawn, controls, marks = _script(entry, level(map_seed), rng)
    fault = entry.variant.removeprefix("start-") if entry.variant.startswith("start-") else ""
    return Case(
        id=name,
        suite=entry.suite,
        variant=entry.variant,
        split=entry.split,
        map_seed=map_seed,
        spawn=spawn,
        controls=controls,
        marks=marks,
        seed=draw % 100_000,
        look="swap" if entry.split == "ood-look" else "",
        start=fault,
        pair=f"S9-twin-{index:03d}" if entry.suite == "S9" and entry.variant != "twin" else "",
    )


Made = tuple["Spawn", Controls, Mapping[str, list[int]]]


def _script(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    suite = entry.suite if entry.suite != "S10" else {"yaw": "S2", "roam": "S7"}.get(entry.variant, "S3")
    return _MAKERS[suite](entry, place, rng)


def _fixed(place: Map, rng: np.random.Generator, controls: Controls, marks: Mapping[str, list[int]]) -> Made:
    return scripts.free_spawn(place, rng, [controls]), controls, marks


def _single(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    return _fixed(place, rng, scripts.single(entry.variant, entry.frames), {})


def _prbs(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    axes = tuple(entry.variant.split("+"))
    for _ in range(50):  # a random walk may not fit the map: draw walk and place together
        controls = scripts.random_holds(entry.frames, rng, axes)
        try:
            return scripts.free_spawn(place, rng, [controls], tries=40), controls, {}
        except WorldlineError:
            continue
    raise WorldlineError(f"map {place.seed} has no room for {entry.variant}; use another map seed")


def _pan(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    return _fixed(place, rng, *scripts.pan_return(float(entry.variant.removeprefix("pan-"))))


def _spin(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    return _fixed(place, rng, *scripts.spin(int(entry.variant.removeprefix("spin-"))))


def _square(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    return _fixed(place, rng, *scripts.square())


def _alternate(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    return _fixed(place, rng, *scripts.alternate(entry.variant))


def _roam(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    spawn = scripts.random_spawn(place, rng)
    return spawn, scripts.free_roam(place, spawn, entry.frames, rng), {}


def _idle(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    return _fixed(place, rng, Controls.still(entry.frames), {})


def _disturb(entry: Entry, place: Map, rng: np.random.Generator) -> Made:
    before = scripts.random_holds(64, rng, ("yaw",))
    after = scripts.random_holds(160, rng, ("yaw",))
    sides = np.where(rng.random(8) < 0.5, -1.0, 1.0)
    spawn = scripts.free_spawn(place, rng, [Controls.still(1)])
    wall = scripts.facing_wall(place, rng)
    between = {
        "burst": Controls.concat([scripts.hold(4, yaw=3 * scripts.FAST * side) for side in sides]),
        "contradict": Controls(np.zeros((32, 3)), np.zeros((32, 3)), (("w", "s", "left", "right"),) * 32),
        "noop": Controls.still(160),
    }.get(entry.variant, Controls.still(32))
    controls = Controls.concat([before, between, after])
    marks = {"disturbed": [len(before)], "after": [len(before) + len(between)]}
    if entry.variant.startswith("start-"):
        marks = {"disturbed": [0], "after": [1]}
    return wall if entry.variant == "wall" else spawn, controls, marks


_MAKERS: dict[str, Callable[[Entry, Map, np.random.Generator], Made]] = {
    "S1": _single, "S2": _prbs, "S3": _pan, "S4": _spin, "S5": _square, "S6": _alternate, "S7": _roam, "S8": _idle,
    "S9": _disturb, "S11": _roam,
}  # fmt: skip
