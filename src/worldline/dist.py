"""The one home of process groups: identities on one process.

Two axes: data parallel (`dp`, other samples) and sequence parallel (`sp`, other tokens of the same samples; Ulysses,
arXiv:2309.14509). Process r has data rank r // sp and sequence rank r % sp. Collectives of the host (flags, stages) go
over gloo, so that they never wait for a device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from worldline.schema import WorldlineError

T = TypeVar("T")
BUCKET = 1 << 25  # numbers averaged together
FOREVER = timedelta(days=7)  # rank 0 may render and encode for days while the others wait


class DesyncError(WorldlineError):
    """Processes that must do the same were about to do different things."""


@dataclass(frozen=True)
class Groups:
    """What this process belongs to."""

    dp: int
    sp: int
    sequence: Any  # group of the processes that share a sample; None where sp is 1
    patient: Any  # group for waiting


_groups: Groups | None = None
_lockstep = False  # whether all processes run the same training step at the moment
_sharing = False  # whether tokens are spread over the sequence group at the moment


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes logs and checkpoints."""
    return rank() == 0


def launched() -> bool:
    """Whether a launcher (torchrun, srun) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(*, timeout: float = 600.0) -> None:
    """Join the processes of a launcher, by its environment; nothing on one process. timeout: seconds a collective of
    training may take before a lost process is an error."""
    if not launched() or dist.is_initialized():
        return
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout))


def stop() -> None:
    """Leave the process group."""
    global _groups
    _groups = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def arrange(sp: int = 1) -> Groups:
    """Split the processes into data and sequence parallel groups; asked again for the same sp, the same groups.
    Raises WorldlineError where sp does not divide the number of processes."""
    global _groups
    world = world_size()
    if sp < 1 or world % sp:
        near = [n for n in range(1, world + 1) if world % n == 0]
        raise WorldlineError(f"sequence_parallel is {sp} on {world} processes; expected one of {near}")
    if _groups is None or _groups.sp != sp:
        dp, own = world // sp, rank()
        sequence = patient = None
        if world > 1:
            patient = dist.new_group(backend="gloo", timeout=FOREVER) if _groups is None else _groups.patient
            # Every process makes every group, in the same order.
            rows = [dist.new_group([d * sp + s for s in range(sp)]) for d in range(dp)] if sp > 1 else []
            sequence = rows[own // sp] if rows else None
        _groups = Groups(dp, sp, sequence, patient)
    return _groups


def data_rank() -> int:
    """Which samples this process trains on."""
    return rank() // (_groups.sp if _groups else 1)


def barrier() -> None:
    """Wait for all processes, however long."""
    if world_size() > 1:
        dist.barrier(group=_patient())


def _patient() -> Any:
    return (_groups or arrange()).patient


def share(value: T) -> T:
    """Rank 0's value, on every process. A picklable object; waits for as long as rank 0 takes."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_patient())
    return box[0]


def on_main(work: Callable[[], T]) -> T | None:
    """`work()` on rank 0 while the others wait (None there). A failure on rank 0 is an error on every process."""
    if world_size() == 1:
        return work()
    found, error = None, None
    if is_main():
        try:
            found = work()
        except BaseException as problem:
            error = problem
    failed = share(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if failed is not None:
        raise WorldlineError(f"rank 0 failed, the others stop with it: {failed}")
    return found


def everywhere(work: Callable[[], T]) -> T:
    """`work()` on every process, however long each takes. A failure on one is an error on all, once all have ended."""
    if world_size() == 1:
        return work()
    found: T | None = None
    error: BaseException | None = None
    try:
        found = work()
    except BaseException as problem:
        error = problem
    failures: list[str | None] = [None] * world_size()
    own = None if error is None else f"{type(error).__name__}: {error}"
    dist.all_gather_object(failures, own, group=_patient())
    if error is not None:
        raise error
    failed = [
        f"rank {r} failed, the others stop with it: {text}" for r, text in enumerate(failures) if text is not None
    ]
    if failed:
        raise WorldlineError(failed[0])
    return cast(T, found)


def own_share(items: Sequence[T]) -> list[T]:
    """This process's part of work that rank 0 knows (its `items` count): every n-th item of n processes."""
    return list(share(list(items)))[rank() :: world_size()]


def largest(values: Sequence[float]) -> list[float]:
    """Elementwise maximum over all processes, on the host."""
    if world_size() == 1:
        return list(values)
    box = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return [float(v) for v in box]


def mean_(tensors: Sequence[Tensor]) -> None:
    """Average tensors of one type over all processes, in place, some 100 MB a collective."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for i, tensor in enumerate(tensors):
        bucket.append(tensor)
        if i + 1 == len(tensors) or sum(t.numel() for t in bucket) > BUCKET:
            flat = torch.cat([t.reshape(-1) for t in bucket])
            dist.all_reduce(flat)
            flat /= world_size()
            for t, piece in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                t.copy_(piece.view_as(t))
            bucket = []


@contextmanager
def lockstep() -> Iterator[None]:
    """Within it all processes run the same training step: `agree` compares, and tokens are shared out."""
    global _lockstep, _sharing
    before = (_lockstep, _sharing)
    _lockstep, _sharing = world_size() > 1, _groups is not None and _groups.sp > 1
    try:
        yield
    finally:
        _lockstep, _sharing = before


def agree(name: str, value: int) -> None:
    """Raise DesyncError on every process where `value` differs between them: what follows would otherwise hang in a
    collective that some never reach. Free outside `lockstep`."""
    if not _lockstep:
        return
    box = torch.tensor([value], dtype=torch.int64)
    found = [torch.zeros_like(box) for _ in range(world_size())]
    dist.all_gather(found, box)
    values = [int(v) for v in found]
    if len(set(values)) > 1:
        raise DesyncError(
            f"{name} differs between processes: {values} by rank; expected the same on all, as each of its steps is a "
            "collective: draw it from Rng.shared, which knows no rank"
        )


def sequence() -> int:
    """Processes that share the tokens of a sample at the moment; 1 outside training."""
    return _groups.sp if _sharing and _groups is not None else 1


def own_tokens(x: Tensor, dim: int) -> Tensor:
    """This process's part of `x`, which every process of the sequence group holds alike; in backward the parts' gradients
    are put together again. Losses are means over the group, hence the factors here and in `all_tokens`."""
    out: Tensor = _Own.apply(x, dim)
    return out


def all_tokens(x: Tensor, dim: int) -> Tensor:
    """The parts of every process of the sequence group, in order; each then forms the same loss."""
    out: Tensor = _All.apply(x, dim)
    return out


def everyones_tokens(x: Tensor, dim: int) -> Tensor:
    """As `all_tokens`, where each process goes on to something of its own: what all of them send back is added up."""
    out: Tensor = _Everyones.apply(x, dim)
    return out


def swap(x: Tensor, split: int, join: int) -> Tensor:
    """Ulysses' exchange: cut `split` into as many parts as the group has processes, part r to process r, and put what
    arrives side by side along a new axis at `join`, by sender. Its gradient is the exchange back."""
    out: Tensor = _Swap.apply(x, split, join)
    return out


def _part(x: Tensor, dim: int) -> Tensor:
    n, g = sequence(), _groups
    assert g is not None
    if x.shape[dim] % n:
        raise WorldlineError(
            f"{x.shape[dim]} tokens a latent frame do not divide over {n} sequence parallel processes; choose "
            f"sequence_parallel among the divisors of {x.shape[dim]}"
        )
    return x.chunk(n, dim)[rank() % n].contiguous()


def _gather(x: Tensor, dim: int) -> Tensor:
    assert _groups is not None
    parts = [torch.empty_like(x) for _ in range(_groups.sp)]
    dist.all_gather(parts, x.contiguous(), group=_groups.sequence)
    return torch.cat(parts, dim)


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return _part(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        assert _groups is not None
        return _gather(grad, ctx.dim) / _groups.sp, None


class _All(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return _gather(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        assert _groups is not None
        n = _groups.sp
        return grad.chunk(n, ctx.dim)[rank() % n] * n, None


def _exchange(x: Tensor) -> Tensor:
    """x: [sp, ...], row r for process r -> [sp, ...], row r from process r."""
    assert _groups is not None
    out, x = torch.empty_like(x, memory_format=torch.contiguous_format), x.contiguous()
    dist.all_to_all_single(out, x, group=_groups.sequence)
    return out


class _Everyones(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return _gather(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        assert _groups is not None
        return _exchange(torch.stack(grad.chunk(_groups.sp, ctx.dim))).sum(dim=0), None


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, split: int, join: int) -> Tensor:
        ctx.split, ctx.join = split, join
        assert _groups is not None
        return _exchange(torch.stack(x.chunk(_groups.sp, split))).movedim(0, join)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat(_exchange(grad.movedim(ctx.join, 0)).unbind(0), ctx.split), None, None
