"""A world on disk: a directory with a model and `world.json`, which says how that model is to be streamed."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from worldline.functional.masks import Visibility
from worldline.models.text_readers import Reader
from worldline.rollout.history import CameraMemory
from worldline.rollout.plan import RolloutPlan, Solver
from worldline.rollout.positions import Positions
from worldline.schema import WorldlineError


@dataclass(frozen=True, kw_only=True)
class WorldText:
    """The large text encoder that a world's prompts were embedded by."""

    kind: Reader = "umt5"
    fingerprint: str  # of the encoder: weights, tokenizer, length, dtype
    path: str  # where its files lay when the world was made
    images: str | None = None  # fingerprint of the encoder of start images; null: the model is told nothing of them

    def __post_init__(self) -> None:
        if self.kind not in get_args(Reader):
            raise WorldlineError(
                f"text encoder {self.kind!r}; expected one of {', '.join(get_args(Reader))}, or no `text` for hashed words"
            )


def check_streamable(visibility: Visibility) -> None:
    """Raises WorldlineError where a world cannot be streamed so."""
    if visibility.prefix != 1:
        raise WorldlineError(f"prefix {visibility.prefix}: expected 1, a world starts from one given image")
    if visibility.window is None:
        raise WorldlineError("a streamed world needs a bounded past: set visibility.window to the trained history")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """`world.json`, key by key. Paths are relative to the world's directory."""

    codec: str = "../codec"  # directory of the video codec
    starts: str = "../starts"  # directory of start images with an index.json
    visibility: Visibility  # who sees whom, as trained
    sigmas: tuple[float, ...]  # noise levels at which the model is called
    solver: Solver = "consistency"
    guidance: float = 1.0
    fps: float = 16.0  # native pixel frames a second
    height: int  # pixels
    width: int
    K: tuple[float, float, float, float]  # normalised fx, fy, cx, cy
    move_scale: float  # model units a game unit
    walk_units_per_frame: float  # game units a pixel frame at full walking speed
    turn_deg_per_frame: float = 2.0  # what a held turn key means
    max_turn_deg_per_frame: float = 3.0  # fastest turn seen in training; a mouse is held to it
    text: WorldText | None = None  # null: hashed words, which need no files
    positions: Positions = "absolute"  # in walks longer than the training (rollout.positions)
    horizon: int | None = None  # for positions `clamp`: latent frames of the longest training clip
    memory: CameraMemory | None = None  # recalls latent frames from beyond the window (rollout.history)

    def __post_init__(self) -> None:
        check_streamable(self.visibility)
        if not (self.fps > 0 and self.height > 0 and self.width > 0):
            raise WorldlineError(f"fps {self.fps}, {self.width}x{self.height}: expected all above 0")
        _ = self.plan  # its own checks

    @property
    def plan(self) -> RolloutPlan:
        """How a chunk of this world is generated."""
        return RolloutPlan(
            self.visibility, self.sigmas, self.solver, self.guidance,
            positions=self.positions, horizon=self.horizon, history=self.memory,
        )  # fmt: skip

    @property
    def chunks_to_fill(self) -> int:
        """Chunks after the start until every slot of the cache is taken, and a chunk later ones see no other number."""
        visibility, slots = self.visibility, 0 if self.memory is None else self.memory.slots
        return -(-((visibility.window or 0) + visibility.sink + slots) // visibility.chunk) + slots + 1

    def memory_of(self, slots: int) -> CameraMemory | None:
        """This world's memory with so many slots; None with 0."""
        return replace(self.memory or CameraMemory(), slots=slots) if slots else None

    @property
    def intrinsics(self) -> np.ndarray:
        """K as an array [4]."""
        return np.asarray(self.K, dtype=np.float64)

    @staticmethod
    def read(directory: str | Path) -> WorldConfig:
        """The config of a world directory. Raises WorldlineError on a missing file and on any unknown or absent key."""
        path = Path(directory) / "world.json"
        if not path.is_file():
            raise WorldlineError(f"{directory} has no world.json; expected a world directory written by a run")
        try:
            raw = json.loads(path.read_text())
            visibility = Visibility(**raw.pop("visibility"))
            text = raw.pop("text", None)
            text = None if text is None else WorldText(**text)
            memory = raw.pop("memory", None)
            memory = None if memory is None else CameraMemory(**memory)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise WorldlineError(f"{path} is not readable ({error}); expected an object with a `visibility`") from error
        fields = {f.name: f for f in dataclasses.fields(WorldConfig)}
        if unknown := sorted(set(raw) - set(fields)):
            near = difflib.get_close_matches(unknown[0], fields, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; expected some of {sorted(fields)}"
            raise WorldlineError(f"{path} has unknown keys {unknown}{hint}")
        needed = [k for k, f in fields.items() if f.default is dataclasses.MISSING and k != "visibility"]
        if absent := [k for k in needed if k not in raw]:
            raise WorldlineError(f"{path} lacks {absent}; every world states them")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return WorldConfig(visibility=visibility, text=text, memory=memory, **values)

    def write(self, directory: str | Path) -> Path:
        """Write `world.json` beside the model; `read` gives back an equal config."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "world.json"
        tmp = path.with_suffix(".json.tmp")
        tmp.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        tmp.replace(path)
        return path


@dataclass(frozen=True)
class Start:
    """A place to start from. image: uint8 [H, W, 3]."""

    name: str
    caption: str
    image: np.ndarray


def read_starts(directory: str | Path, height: int, width: int) -> dict[str, Start]:
    """The start images of an index.json [{file, caption, ...}], by file stem, in its order. Empty where there is none.
    Raises WorldlineError where an image is missing or of another size."""
    from PIL import Image

    directory = Path(directory)
    index = directory / "index.json"
    if not index.is_file():
        return {}
    starts: dict[str, Start] = {}
    for row in json.loads(index.read_text()):
        path = directory / row["file"]
        if not path.is_file():
            raise WorldlineError(f"{index} names {row['file']}, which is not there; add the image or drop the row")
        image = np.asarray(Image.open(path).convert("RGB"))
        starts[path.stem] = Start(path.stem, str(row.get("caption", "")), checked(image, height, width))
    return starts


def checked(image: Any, height: int, width: int) -> np.ndarray:
    """image as uint8 [height, width, 3], or a WorldlineError that says what it is instead."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.shape != (height, width, 3):
        raise WorldlineError(
            f"start image {array.dtype} {array.shape}: expected uint8 {(height, width, 3)}; use "
            "stream.world.fit(image, height, width)"
        )
    return array


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Any RGB picture uint8 [h, w, 3], cropped at its centre and resized to uint8 [height, width, 3]."""
    from PIL import Image, ImageOps

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise WorldlineError(f"picture {image.dtype} {image.shape}: expected RGB uint8 [h, w, 3]")
    return np.asarray(ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS))
