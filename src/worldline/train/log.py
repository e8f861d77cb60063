"""One JSON line a logged step, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from pathlib import Path


class Log:
    """Appends to <run>/log.jsonl. On resume, lines past the checkpoint are cut, so the file reads as one run."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        self.path = run_dir / "log.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step(line) < resume_step]
        self.path.write_text("".join(f"{line}\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board = None
        else:
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record scalars of a step."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 1 << 62  # a line torn by a kill


def read_log(run_dir: Path) -> list[dict[str, float]]:
    """All whole lines of a run's log."""
    path = Path(run_dir) / "log.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if _step(line) < 1 << 62] if path.exists() else []
    )
