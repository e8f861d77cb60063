"""VBench, mode `custom_input`: a folder of <prompt>-<n>.mp4, the prompt read back from the name.

<out>/videos/<prompt>-<n>.mp4, <out>/prompts.json (path -> prompt, for --prompt_file)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.exporters import Episode
from worldline.evaluate.store import write_json
from worldline.video import write_exact

LONGEST = 180  # characters of a prompt in a file name; file systems take 255 bytes


def write(episodes: Sequence[Episode], model: str, out: Path) -> dict[str, Any]:
    """The whole layout; returns file name -> case."""
    made = write_videos([(e.caption, e.frames) for e in episodes], out / "videos", episodes[0].fps if episodes else 16)
    captions = {str(path.relative_to(out)): e.caption for path, e in zip(made, episodes, strict=True)}
    write_json(out / "prompts.json", captions)
    return {path.name: {"case": e.case} for path, e in zip(made, episodes, strict=True)}


def write_videos(clips: Sequence[tuple[str, np.ndarray]], folder: Path, fps: float) -> list[Path]:
    """(prompt, frames) as files; clips of one prompt are numbered."""
    seen: Counter[str] = Counter()
    made = []
    for prompt, frames in clips:
        name = " ".join(prompt.replace("/", " ").split())[:LONGEST].rstrip() or "clip"
        made.append(write_exact(frames, folder / f"{name}-{seen[name]}.mp4", fps))
        seen[name] += 1
    return made
