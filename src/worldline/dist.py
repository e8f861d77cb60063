"""The one home of process groups: identities on one process."""

from __future__ import annotations

import torch.distributed as dist


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes logs and checkpoints."""
    return rank() == 0
