"""A stream's passes recorded once and replayed: one launch a pass instead of thousands (CUDA graphs).

A recording fixes addresses and shapes, so all that changes between chunks is data on the device: latents, conditions
and the ring's slots are copied into the places the recording reads. Every noise level and the clean pass replay the same
recording; another one is made for every number of visible frames while the ring fills, for every session, and after a
change of prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from worldline.models.backbone import Around, Backbone, TextContext
from worldline.models.conditions import Conditions
from worldline.nn.kv_cache import KVCache, RingCache
from worldline.schema import WorldlineError

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""Records a function of fixed tensors; returns what replays it, and the tensor the result is found in."""


class CUDARecorder:
    """Records CUDA graphs in one memory pool: they never run at the same time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Run once for libraries and compilers to settle, then record."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            out = work()
        return graph.replay, out


@dataclass(frozen=True)
class Recording:
    """One pass, with the tensors it reads and the one it leaves its velocity in."""

    text: TextContext
    inputs: list[Tensor]
    replay: Callable[[], object]
    out: Tensor


class Graphed(Around):
    """A frozen model whose streaming passes are recorded and replayed; whole clips and masked passes go through as
    they are. `record` is CUDARecorder unless a test says otherwise.

    model: may be compiled first (`model.compile(fullgraph=True)`). Raises WorldlineError where it is not frozen: autocast
    would cast its weights into memory that a recording outlives.
    """

    def __init__(self, model: Backbone, record: Record | None = None) -> None:
        super().__init__(model)
        if not model.frozen:
            raise WorldlineError(
                "this model can still be trained; expected a frozen one to record: call freeze() first"
            )
        self._record: Record = record or CUDARecorder()
        self._recordings: WeakKeyDictionary[RingCache, dict[Any, Recording]] = WeakKeyDictionary()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        text: TextContext,
        *,
        cache: KVCache | None = None,
        conditions: Conditions | None = None,
        **seen: Any,
    ) -> Tensor:
        """As the model's. Replays where a ring and conditions are given, which is how a ChunkLoop streams."""
        if not isinstance(cache, RingCache) or conditions is None:
            return self.model(x, sigma, text, cache=cache, conditions=conditions, **seen)
        live = [x, *conditions.tensors()]
        with cache.placed(x.shape[1], self.tokens_per_frame(*x.shape[-2:]), x.device) as visible:
            recordings = self._recordings.setdefault(cache, {})
            found = recordings.get((x.shape, visible))
            if found is None or found.text is not text:
                found = recordings[x.shape, visible] = self._recorded(live, sigma, text, cache, conditions)
            for held, new in zip(found.inputs, live, strict=True):
                held.copy_(new)
            found.replay()
        return found.out.clone()

    def _recorded(
        self, live: list[Tensor], sigma: Tensor, text: TextContext, cache: RingCache, conditions: Conditions
    ) -> Recording:
        held = [tensor.clone() for tensor in live]
        x, fixed = held[0], conditions.of(held[1:])
        replay, out = self._record(lambda: self.model(x, sigma, text, cache=cache, conditions=fixed))
        return Recording(text, held, replay, out)
