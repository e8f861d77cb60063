"""Files of sessions on disk: a folder each, gone some time after the session. What a client sent lies beside what it may
take away; the random name is the right to a file."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldline.schema import WorldlineError
from worldline.serve.protocol import FILE_ID

TYPES = {"mp4": "video/mp4", "safetensors": "application/octet-stream", "png": "image/png"}
MAX_FILES = 64  # of a session
MAX_BYTES = 2**30


@dataclass(frozen=True)
class Folder:
    """The files of one session. Processes on one machine share it by its path."""

    path: Path

    def new(self, suffix: str) -> Path:
        """A name for a new file. Raises WorldlineError where the session has too many, or too large ones."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        sizes = [f.stat().st_size for f in self.path.iterdir()]
        if len(sizes) >= MAX_FILES or sum(sizes) > MAX_BYTES:
            raise WorldlineError(
                f"this session has {len(sizes)} files of {sum(sizes) >> 20} MiB on the server; expected at most "
                f"{MAX_FILES} and {MAX_BYTES >> 20} MiB, begin another session"
            )
        return self.path / f"{secrets.token_hex(16)}.{suffix}"

    def find(self, file: str, suffix: str) -> Path:
        """An uploaded file by its id. Raises WorldlineError where this session has none such."""
        path = self.path / f"{file}.{suffix}"
        if not FILE_ID.fullmatch(file) or not path.is_file():
            raise WorldlineError(f"no uploaded file {file!r} of this kind in this session; upload it first")
        return path


def describe(path: Path) -> dict[str, Any]:
    """What a client is told of a file it may take away."""
    suffix = path.suffix[1:]
    return {
        "id": path.stem, "name": f"worldline-{path.stem[:8]}.{suffix}", "url": f"/api/files/{path.stem}",
        "bytes": path.stat().st_size, "type": TYPES[suffix],
    }  # fmt: skip


class Spool:
    """All sessions' folders, in a directory of this server's own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, session: str) -> Folder:
        """The folder of a session, which need not exist yet."""
        return Folder(self.root / session)

    def find(self, file: str) -> Path | None:
        """A file by its id, whosever it is; None where there is none."""
        if not FILE_ID.fullmatch(file):
            return None
        return next((p for s in TYPES for p in self.root.glob(f"*/{file}.{s}")), None)

    def drop(self, session: str) -> None:
        """Delete a session's files."""
        shutil.rmtree(self.root / session, ignore_errors=True)

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)
