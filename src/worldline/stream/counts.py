"""What a chunk of a stream asks of its host: operations, reads of device values, graph breaks. Counted, not timed."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worldline.schema import Controls

if TYPE_CHECKING:
    from worldline.stream.engine import Engine
    from worldline.stream.session import Session

# Operations whose result the host must know before it goes on: a value, or how many there are.
READS = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_unique2", "unique_dim", "allclose",
}  # fmt: skip
PACKAGE = Path(__file__).parents[1]


@dataclass
class Counts:
    """Of one chunk. operations: on tensors, views left out; reads: by `file:function` of this package, how often the host
    waited for a value; kernels: launched on an accelerator, None on a CPU."""

    operations: int = 0
    reads: Counter[str] = field(default_factory=Counter)
    kernels: int | None = None


class Watch(TorchDispatchMode):
    """Counts what is called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run, and count."""
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        self.counts.operations += 1
        name = func._overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        to_host = any(x.device.type == "cpu" for x in made) and any(x.device.type != "cpu" for x in given)
        if name in READS or to_host:
            self.counts.reads[_site()] += 1
        return out


def _site() -> str:
    """Where in this package the call under way was made."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path != Path(__file__):
            return f"{path.relative_to(PACKAGE)}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


def count_chunk(session: Session, controls: Controls) -> Counts:
    """A step of a session as it stands; the commit of the chunk before is done first and not counted."""
    session.commit()
    with Watch() as watch:
        session.step(controls)
    counts = watch.counts
    if session.engine.device.type == "cuda":
        counts.kernels = _kernels(session, controls)
    return counts


def _kernels(session: Session, controls: Controls) -> int:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    session.commit()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        session.step(controls)
    return sum(event.device_type == DeviceType.CUDA for event in seen.events())


def graph_breaks(engine: Engine) -> int:
    """How often compiling a chunk's passes (its steps and the clean pass, on a full window) fell back to Python. Traces
    with torch's own front end and generates no code."""
    from torch._dynamo.utils import counters

    from worldline.stream.moment import Moment

    blank = np.zeros((engine.config.height, engine.config.width, 3), np.uint8)
    still, chunks = Controls.still(engine.frames_per_chunk), engine.config.chunks_to_fill
    torch._dynamo.reset()
    with engine.compute():
        moment = Moment.begin(engine, blank, "", engine.model)
        for chunk in range(chunks + 1):
            if chunk == chunks:
                counters.clear()
                moment.loop.model = torch.compile(engine.model, backend="eager")  # type: ignore[assignment]
            drawn = moment.draw(still, 0, 0)
            moment.camera, moment.chunks = drawn.camera, moment.chunks + 1
            moment.commit(drawn)
    found = sum(counters["graph_break"].values())
    traced = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    if not traced:
        raise RuntimeError("nothing was traced")
    return int(found)
