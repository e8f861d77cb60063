"""What is done: a `stage.json` a stage, the content hash that names its outputs, the shelf of replaced ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["running", "interrupted", "failed", "done"]


def content_hash(config: Any, inputs: dict[str, str]) -> str:
    """sha256 of canonical JSON: a stage's config as data and the hashes of what it reads."""
    text = json.dumps({"config": config, "inputs": inputs}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class StageRecord:
    """The contents of stage.json."""

    name: str
    hash: str
    status: Status = "running"
    inputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # of all attempts together
    losses: dict[str, float] = field(default_factory=dict)  # last logged values
    error: str = ""
    family: str = ""  # see Node.family


class StageStore:
    """The stage directories of a run. A directory whose hash no longer fits is shelved, not deleted: an option changed
    back finds its result again."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def directory(self, name: str) -> Path:
        """Where a stage writes."""
        return self.run_dir / name

    def read(self, name: str) -> StageRecord | None:
        """The record of a stage, None where there is none (or it is unreadable: then nothing was finished)."""
        return _read(self.directory(name))

    def write(self, record: StageRecord) -> None:
        """Replace a stage's record atomically."""
        directory = self.directory(record.name)
        directory.mkdir(parents=True, exist_ok=True)
        tmp = directory / "stage.json.tmp"
        tmp.write_text(json.dumps(asdict(record), indent=2) + "\n")
        tmp.replace(directory / "stage.json")

    def done(self, name: str, wanted: str) -> bool:
        """Whether the outputs of this hash are there, taken back from the shelf if need be."""
        shelved = self._shelf(name, wanted)
        record = self.read(name)
        if (record is None or record.hash != wanted) and shelved.is_dir():
            self.shelve(name)
            shelved.rename(self.directory(name))
            record = self.read(name)
        return record is not None and record.hash == wanted and record.status == "done"

    def shelve(self, name: str) -> None:
        """Put a stage's directory aside under its hash."""
        directory, record = self.directory(name), self.read(name)
        if not directory.exists():
            return
        target = self._shelf(name, record.hash if record else "unknown")
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(target)

    def adopt(self, name: str, wanted: str, other: StageStore) -> bool:
        """Take a finished stage of this hash from another run, which is left as it is (hard links where the disk
        allows)."""
        for directory in (other.directory(name), other._shelf(name, wanted)):
            record = _read(directory)
            if record is not None and record.hash == wanted and record.status == "done":
                self.shelve(name)
                shutil.copytree(directory, self.directory(name), copy_function=_link)
                return True
        return False

    def _shelf(self, name: str, digest: str) -> Path:
        return self.run_dir / "replaced" / f"{name}-{digest[:12]}"


def _read(directory: Path) -> StageRecord | None:
    try:
        return StageRecord(**json.loads((directory / "stage.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
