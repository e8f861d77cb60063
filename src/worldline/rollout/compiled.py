"""A stream that starts at once and grows quicker: the model as it is, until a compiled one is ready beside it.

Compiling takes from seconds to minutes, so it happens in a thread of its own on a walk of its own. What is compiled is the pass
of a full ring, whose shapes never change again (slots are data, `RingCache.placed`); passes of a filling ring stay as they
are. A pass that would have to be compiled anew runs as it is instead of making the viewer wait.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from worldline.models.backbone import Around, Backbone, TextContext
from worldline.nn.kv_cache import KVCache, RingCache

State = Literal["eager", "compiling", "compiled", "failed"]
Pass = Callable[..., Tensor]


def one_graph(forward: Pass) -> Pass:
    """PyTorch's own compiler; a break in the graph is an error."""
    return torch.compile(forward, fullgraph=True, dynamic=False)


class CompileWarning(UserWarning):
    """Compiling failed or gave other numbers; the stream goes on as it was."""


class Swapping(Around):
    """A model for inference whose streaming passes may be replaced by compiled ones while it is in use.

    compile: makes a quicker function of the model's forward. state: where it stands; note: why, in words.
    """

    def __init__(self, model: Backbone, compile: Callable[[Pass], Pass] | None = None) -> None:
        super().__init__(model)
        self._compile = one_graph if compile is None else compile
        self._quick: Pass | None = None
        self.state: State = "eager"
        self.note, self.seconds = "", 0.0
        self._thread: threading.Thread | None = None

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        text: TextContext,
        *,
        cache: KVCache | None = None,
        conditions: Any | None = None,
        **seen: Any,
    ) -> Tensor:
        """As the model's."""
        quick = self._quick
        if quick is None or not fixed(cache, x, conditions):
            return self.model(x, sigma, text, cache=cache, conditions=conditions, **seen)
        assert isinstance(cache, RingCache)
        with (
            cache.placed(x.shape[1], self.tokens_per_frame(*x.shape[-2:]), x.device),
            torch.compiler.set_stance("eager_on_recompile"),
        ):
            return quick(x, sigma, text, cache=cache, conditions=conditions)

    def start(self, walk: Callable[[Backbone], Tensor], tolerance: float, wait: bool = False) -> None:
        """Compile in a thread and swap once it is ready. walk: streams some chunks through the model it is given, past a full
        ring, in the compute type, and returns their latents. The compiled walk must equal the plain one within `tolerance`,
        as a share of its norm; otherwise, and where compiling fails, a CompileWarning is given and nothing is swapped."""
        if self._thread is not None:
            return
        self.state = "compiling"
        self._thread = threading.Thread(target=self._ready, args=(walk, tolerance), name="compile", daemon=True)
        self._thread.start()
        if wait:
            self._thread.join()

    def _ready(self, walk: Callable[[Backbone], Tensor], tolerance: float) -> None:
        begin = time.perf_counter()
        try:
            made = self._compile(self.model.forward)
            wanted, got = walk(self.model), walk(_Compiled(self.model, made))
            away = float((got - wanted).norm() / wanted.norm())
            if not away <= tolerance:
                raise ArithmeticError(f"latents differ by {away:.2g} of their norm, more than {tolerance:.2g}")
            self._quick, self.state, self.note = made, "compiled", f"latents differ by {away:.1e} of their norm"
        except Exception as error:
            self.state, self.note = "failed", f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the world streams as it is, uncompiled: {self.note.splitlines()[0]}", CompileWarning, stacklevel=2
            )
        self.seconds = time.perf_counter() - begin


def fixed(cache: KVCache | None, x: Tensor, conditions: Any | None) -> bool:
    """Whether this is a pass whose shapes are those of all later ones."""
    return isinstance(cache, RingCache) and conditions is not None and cache.full(x.shape[1])


class _Compiled(Swapping):
    """A walk of the compiling thread: compiles where the stream would not."""

    def __init__(self, model: Backbone, quick: Pass) -> None:
        super().__init__(model)
        self._made = quick

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        text: TextContext,
        *,
        cache: KVCache | None = None,
        conditions: Any | None = None,
        **seen: Any,
    ) -> Tensor:
        """As the model's."""
        if not fixed(cache, x, conditions):
            return self.model(x, sigma, text, cache=cache, conditions=conditions, **seen)
        assert isinstance(cache, RingCache)
        with cache.placed(x.shape[1], self.tokens_per_frame(*x.shape[-2:]), x.device):
            return self._made(x, sigma, text, cache=cache, conditions=conditions)
