"""Work of the stages that come before conversion: render clips, encode them."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worldline import dist
from worldline.data.build import DataConfig, build_dataset
from worldline.recipes.training import device
from worldline.recipes.workspace import Workspace


def bar(what: str) -> Progress:
    """A progress bar of countable things; of several processes, the first one's."""
    return Progress(
        TextColumn(f"  {what}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not dist.is_main(),
    )


def build_data(config: DataConfig, out: Path, workers: int | None = None) -> None:
    """Render what is missing of a dataset, with a progress bar. Finished units are never done again."""
    with bar("maps") as shown:
        task = shown.add_task("", total=len(config.units()), note="")

        def progress(done: int, total: int, rate: float) -> None:
            shown.update(task, completed=done, total=total, note=f"{rate:.0f} frames/s" if rate else "")

        build_dataset(config, out, workers=workers, progress=progress)


def data(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `data`."""
    build_data(ws.recipe.data.build, directory, ws.recipe.data.workers)
    return {"clips": float(len(ws.clips()))}


def encode(ws: Workspace, directory: Path) -> dict[str, float]:
    """Stage `encode`: latents, poses, prompts and (where the model is told of them) start images of every clip."""
    from worldline.data.encode import encode_dataset

    with bar("shards") as shown:
        task = shown.add_task("", total=None, note="")

        def progress(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        clips = ws.clips()
        with torch.autocast(device().type, torch.bfloat16):
            encode_dataset(
                clips, ws.codec().to(device()), ws.text_encoder(), directory / "latents", progress=progress,
                images=ws.image_encoder(),
            )  # fmt: skip
    return {"clips": float(len(clips))}
