"""One JSON line a logged step, and whatever trackers a run was given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldline.track import Tracker


class Log:
    """Appends to <run>/log.jsonl. On resume, lines past the checkpoint are cut, so the file reads as one run."""

    def __init__(self, run_dir: Path, resume_step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)
        self.path = run_dir / "log.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step(line) < resume_step]
        self.path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record scalars of a step."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker.scalars(values, step)

    def close(self) -> None:
        """Flush what is buffered."""
        for tracker in self.trackers:
            tracker.close()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 62  # a line torn by a kill


def note(run_dir: Path, step: int, data: dict[str, Any]) -> None:
    """Add a line that is no line of scalars of every `log_every` steps: a finding, figures of samples."""
    with (Path(run_dir) / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "note": data}) + "\n")


def read_log(run_dir: Path) -> list[dict[str, float]]:
    """All whole lines of scalars of a run's log."""
    return [line for line in _lines(run_dir) if "note" not in line]


def read_notes(run_dir: Path) -> list[dict[str, Any]]:
    """What `note` added."""
    return [line["note"] for line in _lines(run_dir) if "note" in line]


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    path = Path(run_dir) / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step(line) < 1 << 62]
