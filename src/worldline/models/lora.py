"""LoRA on our own modules: y = W x + b + (alpha / rank) B A x, with W and b frozen (Hu et al. 2021, arXiv:2106.09685).

A model may carry several adapters; one switch, shared by all its layers, says which of them acts. Nothing else changes
with it: no parameter is frozen or freed by switching, so that a student, its critic and their teacher can take turns on
one base while a graph is waiting for its backward. Keys of the base stay what they were; those of an adapter lie beside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.models.backbone import Backbone, TextContext
from worldline.models.convert.keymaps import WAN, unwrap
from worldline.nn.kv_cache import KVCache
from worldline.schema import TextEmbedding, WorldlineError

Targets = Literal["attention", "all-linear"] | list[str]
LoRANaming = Literal["diffusers", "comfyui"]
M = TypeVar("M", bound=nn.Module)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LORA_KEY = re.compile(r"(.+)\.(?:(lora_A|lora_B|lora_down|lora_up)(?:\.[^.]+)?\.weight|(alpha))")
LORA_PARTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}


class LoRAError(WorldlineError):
    """An adapter that does not exist, exists already, or does not fit this model."""


@dataclass
class Switch:
    """Which adapter acts in a model; None: the base alone."""

    adapter: str | None


class AdaptedLinear(nn.Module):
    """A frozen linear layer with low-rank updates by name. Deliberately no nn.Linear: what packs or quantises linears by
    their type then finds A and B as well, instead of dropping them."""

    def __init__(self, linear: nn.Linear, switch: Switch) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.switch = linear.weight, linear.bias, switch
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scale: dict[str, float] = {}

    def add(self, adapter: str, rank: int, alpha: float) -> None:
        """A uniform as linear layers start, B zero: no effect yet. Both fp32 on the base's device."""
        device = self.weight.device
        down = nn.Linear(self.in_features, rank, bias=False, device=device, dtype=torch.float32)
        up = nn.Linear(rank, self.out_features, bias=False, device=device, dtype=torch.float32)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        self.lora_A[adapter], self.lora_B[adapter], self.scale[adapter] = down, up, alpha / rank

    def matrices(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A [rank, in] and B [out, rank]."""
        return self.get_parameter(f"lora_A.{adapter}.weight"), self.get_parameter(f"lora_B.{adapter}.weight")

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        y, name = F.linear(x, self.weight, self.bias), self.switch.adapter
        if name is None or name not in self.lora_A:
            return y
        down: Any = self.lora_A[name]
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.weight.dtype)
        return y + (self.scale[name] * self.lora_B[name](down(x))).to(y.dtype)

    @torch.no_grad()
    def merged(self, adapter: str) -> nn.Linear:
        """A plain layer around the same weight, to which scale B A is added, in fp32, and stored as W was."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        if adapter in self.lora_A:
            A, B = self.matrices(adapter)
            plain.weight.copy_(plain.weight.float() + self.scale[adapter] * (B @ A))
        return plain.train(self.training)


def _layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def _with(model: nn.Module, adapter: str) -> dict[str, AdaptedLinear]:
    """The layers that carry an adapter."""
    found = {name: layer for name, layer in _layers(model).items() if adapter in layer.lora_A}
    if not found:
        raise LoRAError(
            f"no adapter {adapter!r} on this {type(model).__name__}; it carries {adapters(model) or 'none'}"
        )
    return found


def adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that a model carries."""
    return sorted({name for layer in _layers(model).values() for name in layer.lora_A})


def _switch(model: nn.Module) -> Switch:
    for layer in _layers(model).values():
        return layer.switch
    raise LoRAError(f"this {type(model).__name__} carries no adapter; call add_lora first")


def _linears(model: nn.Module) -> list[str]:
    """Paths of all layers that can be adapted, or are."""
    inside = tuple(f"{name}." for name in _layers(model))
    kinds = (nn.Linear, AdaptedLinear)
    return [n for n, m in model.named_modules() if isinstance(m, kinds) and not n.startswith(inside)]


def _kinds(paths: list[str]) -> str:
    """The paths with block numbers left out: what `targets` may name."""
    return ", ".join(sorted({re.sub(r"^blocks\.\d+\.", "", path) for path in paths})) or "none"


def _chosen(model: nn.Module, targets: Targets) -> list[str]:
    paths = _linears(model)
    if isinstance(targets, str) and targets not in ("attention", "all-linear"):
        raise LoRAError(f"targets {targets!r}; expected 'attention', 'all-linear', or a list of: {_kinds(paths)}")
    if targets == "all-linear":
        wanted, chosen = ["all-linear"], paths
    else:
        wanted = list(ATTENTION) if targets == "attention" else list(targets)
        matches = {name: [p for p in paths if p == name or p.endswith(f".{name}")] for name in wanted}
        if missing := [name for name, found in matches.items() if not found]:
            raise LoRAError(
                f"targets {missing} name no linear layer of {type(model).__name__}; it has: {_kinds(paths)}"
            )
        chosen = [p for p in paths if any(p in found for found in matches.values())]
    if not chosen:
        raise LoRAError(f"targets {wanted} choose no layer; {type(model).__name__} has: {_kinds(paths)}")
    return chosen


def _attach(model: nn.Module, adapter: str, sizes: Mapping[str, tuple[int, float]]) -> None:
    """Give layers, by path, an adapter of (rank, alpha), and freeze the rest of the model."""
    if not adapter or "." in adapter:
        raise LoRAError(f"adapter name {adapter!r}; expected a word without dots")
    if adapter in adapters(model):
        raise LoRAError(
            f"adapter {adapter!r} is already on this {type(model).__name__}; merge it or choose another name"
        )
    present = _layers(model)
    switch = next(iter(present.values())).switch if present else Switch(adapter)
    trained = {id(p) for p in _own_parameters(model)}
    for p in model.parameters():
        if id(p) not in trained:
            p.requires_grad_(False)
    for path, (rank, alpha) in sizes.items():
        layer = model.get_submodule(path)
        if isinstance(layer, nn.Linear):
            layer = AdaptedLinear(layer, switch).train(layer.training)
            model.set_submodule(path, layer)
        assert isinstance(layer, AdaptedLinear)
        layer.add(adapter, rank, alpha)
    # Trainers free a whole role at once; on this model that must not reach the base.
    model.__dict__["requires_grad_"] = MethodType(_adapters_require_grad, model)


def _own_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for layer in _layers(model).values():
        yield from layer.lora_A.parameters()
        yield from layer.lora_B.parameters()


def _adapters_require_grad(model: nn.Module, requires_grad: bool = True) -> nn.Module:
    """`requires_grad_` of an adapted model: the adapters follow, the base stays frozen."""
    for p in _own_parameters(model):
        p.requires_grad_(requires_grad)
    return model


def add_lora(
    model: M, rank: int, alpha: float | None = None, targets: Targets = "attention", *, adapter: str = "default"
) -> M:
    """Adapt `model` in place and freeze its base; returns it. alpha: strength, update scale alpha / rank (default: rank).

    targets: "attention" (queries, keys, values and outputs of every attention), "all-linear", or names such as
    ["attn1.to_q", "ffn.net.2"], each meant in every block. The model's `requires_grad_` frees adapters only from now on.
    The first adapter of a model acts; `use_adapter` chooses another. Raises LoRAError where a name fits no layer.
    """
    alpha = float(rank) if alpha is None else alpha
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise LoRAError(f"rank is {rank!r}; expected a whole number of at least 1")
    if not (math.isfinite(alpha) and alpha > 0):
        raise LoRAError(f"alpha is {alpha!r}; expected a finite number above 0")
    _attach(model, adapter, dict.fromkeys(_chosen(model, targets), (rank, alpha)))
    return model


def merge_lora(model: M, adapter: str = "default") -> M:
    """Write an adapter into the base, in place, and leave plain layers; other adapters are dropped. The weights stay
    frozen until `requires_grad_` is called. Returns the model."""
    _with(model, adapter)
    for path, layer in _layers(model).items():
        model.set_submodule(path, layer.merged(adapter))
    model.__dict__.pop("requires_grad_", None)
    return model


@contextmanager
def use_adapter(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """Within, `adapter` acts (None: the base alone). Forwards count, not backwards; but activation checkpointing runs
    forwards again in the backward, which must then lie within too."""
    if adapter is not None:
        _with(model, adapter)
    with _turned(_switch(model), adapter):
        yield


def adapters_off(model: nn.Module) -> AbstractContextManager[None]:
    """Context in which the frozen base answers alone: the teacher of its own adapters."""
    return use_adapter(model, None)


def as_now(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts in which the adapter acts that acts at this moment: for forwards that a backward repeats."""
    for layer in _layers(model).values():
        return partial(_turned, layer.switch, layer.switch.adapter)
    return nullcontext


@contextmanager
def _turned(switch: Switch, adapter: str | None) -> Iterator[None]:
    before, switch.adapter = switch.adapter, adapter
    try:
        yield
    finally:
        switch.adapter = before


def lora_state(model: nn.Module, *, adapter: str = "default", naming: LoRANaming = "diffusers") -> dict[str, Tensor]:
    """An adapter's weights, its scale folded into B (so alpha = rank, which readers assume where no alpha is stated).

    `diffusers`: `transformer.blocks.0.attn1.to_q.lora_A.weight`, as `WanPipeline.load_lora_weights` takes them (peft's
    names behind the component's). `comfyui`: `diffusion_model.blocks.0.self_attn.q.lora_A.weight`, the original Wan's
    names, which ComfyUI's loader takes, and diffusers too. Layers outside Wan keep our names; `comfyui` refuses them.
    """
    state = {}
    for path, layer in _with(model, adapter).items():
        name: str | None = f"transformer.{path}"
        if naming == "comfyui":
            theirs = WAN.theirs(f"{path}.weight")
            if theirs is None:
                raise LoRAError(f"{path} has no name in the original Wan; save with naming='diffusers', or adapt less")
            name = f"diffusion_model.{theirs.removesuffix('.weight')}"
        A, B = layer.matrices(adapter)
        state[f"{name}.lora_A.weight"] = A.detach().clone()
        state[f"{name}.lora_B.weight"] = layer.scale[adapter] * B.detach()
    return state


@dataclass(frozen=True)
class LoRAUpdate:
    """One layer's A [r, in] and B [out, r] of a file, its scale folded into B."""

    down: Tensor
    up: Tensor


@torch.no_grad()
def load_lora(model: M, state: Mapping[str, Tensor], *, adapter: str = "default") -> M:
    """Load an adapter, in place, made where absent (alpha = rank, as the file has them). Names as `lora_state` writes
    them, with `lora_down`/`lora_up` and `.alpha` also read. Raises LoRAError, before anything is changed, where a key is
    not understood, a shape does not fit, or a present adapter has other layers or ranks."""
    updates = updates_of(model, state)
    if adapter not in adapters(model):
        _attach(model, adapter, {path: (len(u.down), float(len(u.down))) for path, u in updates.items()})
    layers = _with(model, adapter)
    have = {path: len(layer.matrices(adapter)[0]) for path, layer in layers.items()}
    found = {path: len(u.down) for path, u in updates.items()}
    if have != found:
        differing = sorted(k for k in have.keys() | found.keys() if have.get(k) != found.get(k))
        raise LoRAError(
            f"adapter {adapter!r} has other layers or ranks than the file at {differing[:4]} ({len(differing)} in all); "
            "load under a name not yet taken, and the adapter is made as the file says"
        )
    for path, update in updates.items():
        A, B = layers[path].matrices(adapter)
        A.copy_(update.down)
        B.copy_(update.up / layers[path].scale[adapter])
    return model


def updates_of(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, LoRAUpdate]:
    """Path of a layer of `model` (which may be on the meta device) -> what an adapter's file adds to it. Raises LoRAError
    where a key is not understood or a shape does not fit."""
    paths, parts = set(_linears(model)), dict[str, dict[str, Tensor]]()
    strange = []
    for key, tensor in state.items():
        match = LORA_KEY.fullmatch(key)
        path = None if match is None else _path(match[1], paths)
        if match is None or path is None:
            strange.append(key)
        else:
            part = LORA_PARTS.get(match[2], "alpha")
            parts.setdefault(path, {})[part] = tensor
    if strange or not parts:
        raise LoRAError(
            f"{len(strange)} of {len(state)} keys name no LoRA weight of a layer of {type(model).__name__}: {strange[:4]}; "
            "expected e.g. 'transformer.blocks.0.attn1.to_q.lora_A.weight' or 'diffusion_model.blocks.0.self_attn.q...'"
        )
    return {path: _update(path, model.get_submodule(path), part) for path, part in parts.items()}


def _path(name: str, paths: set[str]) -> str | None:
    """The layer that a file means, by our name or by the original Wan's; None where the model has no such layer."""
    bare = unwrap(name.removeprefix("base_model.model."))
    original = (WAN.ours(f"{bare}.weight") or "").removesuffix(".weight")
    return next((path for path in (bare, original) if path in paths), None)


def _update(path: str, layer: Any, part: dict[str, Tensor]) -> LoRAUpdate:
    if not {"down", "up"} <= part.keys():
        raise LoRAError(f"{path}: the file has only {sorted(part)}; expected both lora_A and lora_B")
    down, up, alpha = part["down"].float(), part["up"].float(), part.get("alpha")
    rank = max(1, down.shape[0] if down.ndim else 0)
    if down.shape != (rank, layer.in_features) or up.shape != (layer.out_features, rank):
        raise LoRAError(
            f"{path}: lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}; expected [r, {layer.in_features}] and "
            f"[{layer.out_features}, r]; is this adapter of another size of the model?"
        )
    if alpha is None:
        return LoRAUpdate(down, up)
    if alpha.numel() != 1:
        raise LoRAError(f"{path}: alpha of shape {tuple(alpha.shape)}; expected one number")
    return LoRAUpdate(down, up * (float(alpha) / rank))


class LoRARole(Backbone):
    """A shared base seen through one adapter (None: the frozen base itself), as a role of a method.

    It holds that adapter's parameters only, so optimizers, averages and checkpoints of a role are small and its own:
    `DMD(LoRARole(base, "student"), LoRARole(base, None), LoRARole(base, "critic"))` keeps one copy of the base.
    Moving any role to a device moves the base and all adapters.
    """

    def __init__(self, base: Backbone, adapter: str | None) -> None:
        super().__init__()
        self._shared, self.adapter, self._turn = (base,), adapter, _switch(base)  # a tuple hides it from nn.Module
        if adapter is None:
            adapted = {id(p) for p in _own_parameters(base)}
            for name, p in base.named_parameters():
                if id(p) not in adapted:
                    parent, _, leaf = name.rpartition(".")
                    _container(self, parent).register_parameter(leaf, p)
            return
        for path, layer in _with(base, adapter).items():
            place = _container(self, path)
            place.lora_A, place.lora_B = layer.lora_A[adapter], layer.lora_B[adapter]

    @property
    def base(self) -> Backbone:
        """The shared model."""
        return self._shared[0]

    @property
    def config(self) -> Any:
        """The base's config."""
        return self.base.config

    def forward(self, x: Tensor, sigma: Tensor, text: TextContext, **seen: Any) -> Tensor:
        """As the base's, with this role's adapter."""
        with _turned(self._turn, self.adapter):
            return self.base(x, sigma, text, **seen)

    def text_context(self, text: TextEmbedding) -> TextContext:
        """As the base's, with this role's adapter."""
        with _turned(self._turn, self.adapter):
            return self.base.text_context(text)

    def tokens_per_frame(self, height: int, width: int) -> int:
        """As the base's."""
        return self.base.tokens_per_frame(height, width)

    @property
    def reanchors(self) -> bool:
        """As the base's."""
        return self.base.reanchors

    def reanchor(self, cache: KVCache, world: Tensor) -> None:
        """As the base's."""
        self.base.reanchor(cache, world)

    def requires_grad_(self, requires_grad: bool = True) -> LoRARole:
        """Free or freeze this role's adapter. Raises LoRAError where it has none."""
        if self.adapter is None and requires_grad:
            raise LoRAError("this role is the frozen base of adapters; it cannot be trained: name an adapter")
        return super().requires_grad_(requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoRARole:
        """A copy has an adapter of its own, of the same weights, on the same base (a moving target of a student)."""
        if self.adapter is None:
            return LoRARole(self.base, None)
        taken, n = adapters(self.base), 1
        while (name := f"{self.adapter}-{n}") in taken:
            n += 1
        layers = _with(self.base, self.adapter)
        sizes = {p: (len(x.matrices(self.adapter)[0]), x.scale[self.adapter]) for p, x in layers.items()}
        _attach(self.base, name, {p: (rank, scale * rank) for p, (rank, scale) in sizes.items()})
        copied = LoRARole(self.base, name)
        copied.load_state_dict(self.state_dict())
        return copied.train(self.training)

    def _apply(self, fn: Any, recurse: bool = True) -> LoRARole:
        self.base._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _container(root: nn.Module, path: str) -> nn.Module:
    """The module at `path` below root, made of empty ones where absent."""
    for word in path.split(".") if path else ():
        if word not in root._modules:
            root.add_module(word, nn.Module())
        root = root.get_submodule(word)
    return root
