"""Several gloo processes for a test: forked from one server that has torch loaded, so that a start costs little."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "worldline.train.loop", "worldline.methods.dmd"])


def together(processes: int, job: Callable[..., Any], *args: Any, limit: float = 900.0) -> list[Any]:
    """job(*args) in `processes` processes of one group; what each returned, by rank. An exception is returned, not raised."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running = [
            CONTEXT.Process(target=_child, args=(folder, rank, processes, port, job, args)) for rank in range(processes)
        ]
        for process in running:
            process.start()
        end = time.monotonic() + limit
        for process in running:
            process.join(max(0.1, end - time.monotonic()))
        hung = [rank for rank, process in enumerate(running) if process.is_alive()]
        for process in running:
            process.kill()
        assert not hung, f"ranks {hung} of {processes} did not end in {limit} s"
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(processes)]


def _child(folder: str, rank: int, processes: int, port: int, job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )
    import torch

    from worldline import dist

    torch.set_num_threads(1)
    try:
        dist.start(timeout=600)
        result = job(*args)
        dist.stop()
    except Exception as error:
        traceback.print_exc()
        result = error
    path = Path(folder) / f"{rank}.part"
    try:
        path.write_bytes(pickle.dumps(result))
    except (TypeError, AttributeError, pickle.PicklingError):
        path.write_bytes(pickle.dumps(RuntimeError(str(result))))
    path.rename(Path(folder) / str(rank))
