"""Read a clip dataset: no engine needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.schema import CameraPath, Controls, WorldlineError


@dataclass(frozen=True)
class Clip:
    """One clip. frames: uint8 [F, H, W, 3]; cameras in game units; controls: action t acts between frames t and t + 1
    (the last row is still); spawn: (x, y, angle) to replay it from."""

    id: str
    frames: np.ndarray
    cameras: CameraPath
    controls: Controls
    caption: str
    split: str
    map_seed: int
    spawn: tuple[int, int, float]


class ClipDataset:
    """Clips by index, read from disk one at a time."""

    def __init__(self, root: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.root, self.info, self.rows = root, info, rows

    @property
    def move_scale(self) -> float:
        """Multiply translations by this: straight walking becomes 0.08 a latent."""
        return float(self.info["move_scale"])

    def split(self, name: str) -> ClipDataset:
        """The clips of one split, `train` or `heldout`."""
        rows = [r for r in self.rows if r["split"] == name]
        if not rows:
            raise WorldlineError(
                f"split {name!r} of {self.root} is empty; it has {sorted({r['split'] for r in self.rows})}"
            )
        return ClipDataset(self.root, self.info, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Clip:
        from safetensors import safe_open

        row = self.rows[index]
        with safe_open(self.root / "units" / f"{row['unit']}.safetensors", "np") as unit:
            get = {k: unit.get_slice(k)[row["row"]] for k in ("frames", "c2w", "K", "move", "look")}
        keys = tuple(tuple(k.split("+")) if k else () for k in row["keys"])
        controls = Controls(get["move"], get["look"], (*keys, ()))
        spawn = (int(row["spawn_x"]), int(row["spawn_y"]), float(row["spawn_angle"]))
        return Clip(
            row["id"],
            get["frames"],
            CameraPath(get["c2w"], get["K"]),
            controls,
            row["caption"],
            row["split"],
            int(row["map_seed"]),
            spawn,
        )


def open_dataset(root: str | Path) -> ClipDataset:
    """Open a built dataset. Raises WorldlineError where it is missing or unfinished."""
    import pyarrow.parquet as pq

    root = Path(root)
    if not (root / "dataset.json").exists():
        raise WorldlineError(
            f"{root} is no finished dataset (no dataset.json); run `worldline data build` with --out {root}"
        )
    info = json.loads((root / "dataset.json").read_text())
    return ClipDataset(root, info, pq.read_table(root / "manifest.parquet").to_pylist())
