"""8-bit linear layers for inference: weights and activations in int8 or fp8 (e4m3), one scale for every row of either.

x W^T ~ (q_x q_w^T) s_x s_w, with q = x / s and s = max|row| / largest number of the format, so that neither rounding nor
range is shared between tokens or between output channels. Weights are rounded once, activations in every call. A gaussian
row loses 0.8 % of its norm in int8 and 2.6 % in fp8; fp8 stays so where a few channels are huge, int8 does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldline.schema import WorldlineError

Scheme = Literal["int8", "fp8"]
FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}  # type and largest number
# What stays as it is, by its key: what meets pixels, the prompt or the clock (few operations, large effect), and what steers.
SKIP = (
    "patch_embedding", "ray_embedding", "condition_embedder.*", "camera_embedder.*", "proj_out", "*.prope_o", "*.attn3.*",
    "*norm*", "x_embedder.*", "image_embedder*", "context_embedder*", "time_embed*",  # as HunyuanVideo names them
)  # fmt: skip
MULTIPLE = 16  # both widths of a weight must divide by it: what the accelerators' 8-bit products ask for
FEWEST = 17  # rows of the least int8 product that cuBLAS takes


class QuantisationError(WorldlineError):
    """A scheme, a model or a device that does not go together."""


def quantise_rows(x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """x: [..., K] -> (q [..., K] in the scheme's format, scale [..., 1] fp32), x ~ q scale; to nearest, ties to even.
    A row that holds NaN or infinity has a scale that is not finite, so that what is made of it is not either."""
    dtype, largest = FORMATS[scheme]
    x = x.float()
    # The least scale keeps a row of zeros from a division by zero, and is normal: the reciprocal is finite.
    scale = (x.abs().amax(-1, keepdim=True) / largest).clamp_min(1e-30)
    q = x / scale
    return (q.round() if dtype == torch.int8 else q).to(dtype), scale


def int8_product(q: Tensor, weight: Tensor) -> Tensor:
    """q: int8 [M, K], weight: int8 [N, K] -> q weight^T, int32 [M, N], exact."""
    rows = q.shape[0]
    if q.is_cuda and rows < FEWEST:
        q = F.pad(q, (0, 0, 0, FEWEST - rows))
    return torch._int_mm(q, weight.t())[:rows]


def fp8_product(q: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, *, by_row: bool) -> Tensor:
    """q: e4m3 [M, K], scale: [M, 1]; weight: e4m3 [N, K], weight_scale: [N, 1] -> [M, N], sums in fp32.

    by_row: the kernel applies the scales of rows and columns itself; an accelerator then rounds the result to bf16.
    """
    if by_row:
        out = torch.bfloat16 if q.is_cuda else torch.float32
        return torch._scaled_mm(q, weight.t(), scale_a=scale, scale_b=weight_scale.t(), out_dtype=out)
    one = scale.new_ones(())
    return torch._scaled_mm(q, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32) * scale * weight_scale.t()


@lru_cache(maxsize=16)
def scales_by_row(device: torch.device) -> bool:
    """Whether the fp8 product of a device takes a scale for every row. Tried on a small product, as which ones do differs
    between generations and releases. Raises QuantisationError where the device has no fp8 product at all."""
    q, scale = quantise_rows(torch.linspace(-3, 5, 32 * 16, device=device).view(32, 16), "fp8")
    exact = (q.double() * scale) @ (q.double() * scale).t()
    for by_row in (True, False):
        try:
            found = fp8_product(q, scale, q, scale, by_row=by_row).double()
            near = bool((found - exact).abs().max() < 0.01 * exact.abs().max())
        except RuntimeError:  # no such kernel: that is the answer
            continue
        if near:
            return by_row
    raise QuantisationError(
        f"{device} has no fp8 product; expected compute capability 8.9 or above (Ada, Hopper, later): choose int8"
    )


class QuantLinear(nn.Module):
    """x W^T + b with both factors in 8 bits, without gradients. Takes any leading shape; returns autocast's type where it is
    on, else that of x. The artefact's keys: `weight` (int8 or e4m3 [N, K]), `weight_scale` (fp32 [N, 1]), `bias` (fp32)."""

    weight_scale: Tensor

    def __init__(self, scheme: Scheme, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.scheme = scheme
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale", weight_scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._settle()

    @staticmethod
    def of(linear: nn.Linear, scheme: Scheme) -> QuantLinear:
        """The 8-bit form of a layer."""
        bias = None if linear.bias is None else linear.bias.detach().float()
        return QuantLinear(scheme, *quantise_rows(linear.weight.detach(), scheme), bias)

    @staticmethod
    def joined(parts: Sequence[QuantLinear]) -> QuantLinear:
        """One layer with the outputs of all parts, side by side: exactly what they give, as every output has its own scale."""
        biases = [part.bias.detach() for part in parts if part.bias is not None]
        return QuantLinear(
            parts[0].scheme,
            torch.cat([part.weight.detach() for part in parts]),
            torch.cat([part.weight_scale for part in parts]),
            torch.cat(biases) if biases else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        out = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        q, scale = quantise_rows(x.reshape(-1, x.shape[-1]), self.scheme)
        y = (
            int8_product(q, self.weight) * scale * self.weight_scale.t()
            if self.scheme == "int8"
            else self._fp8(q, scale)
        )
        y = y if self.bias is None else y + self.bias
        return y.to(out).view(*x.shape[:-1], -1)

    def _fp8(self, q: Tensor, scale: Tensor) -> Tensor:
        if self._wide is None:
            return fp8_product(q, scale, self.weight, self.weight_scale, by_row=self.by_row)
        # A product of two e4m3 numbers is exact in fp32.
        return F.linear(q.float(), self._wide) * scale * self.weight_scale.t()

    def dequantised(self) -> Tensor:
        """The weight that this layer multiplies by, fp32 [N, K]."""
        return self.weight.float() * self.weight_scale

    def _settle(self) -> None:
        """Which kernel, asked once for a device, so that a forward asks nothing. A CPU has none for fp8: PyTorch's widens the
        weight in every call, thirty times the product itself, so it is held widened, no buffer of the model's."""
        device = self.weight.device
        fp8 = self.scheme == "fp8"
        self.by_row = fp8 and device.type not in ("meta", "cpu") and scales_by_row(device)
        self._wide = self.weight.detach().float() if fp8 and device.type == "cpu" else None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._settle()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """Follow the model to another device; a cast of the model leaves the formats, which are part of the numbers."""

        def moved(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

        super()._apply(moved, recurse)
        self._settle()
        return self

    def extra_repr(self) -> str:
        """As `nn.Linear` says it, with the scheme."""
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, {self.scheme}"


@dataclass(frozen=True)
class Quantised:
    """What `quantise` did: layers by their keys; bytes of the whole model's weights in bf16 before, and now with the rest
    in bf16."""

    scheme: Scheme
    layers: tuple[str, ...]
    skipped: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def quantise(model: nn.Module, scheme: Scheme, skip: Sequence[str] = SKIP) -> Quantised:
    """Replace the linear layers of a loaded model by 8-bit ones, in place.

    skip: patterns of keys (`*` for anything) that stay as they are, such as (*SKIP, "blocks.0.*", "blocks.29.*"), which
    also keeps the first and the last block of thirty. Layers whose widths do not divide by 16 stay, too. Call it before
    `freeze`; the model cannot be trained afterwards.

    Raises QuantisationError on an unknown scheme, a pattern that fits no layer, a model that is quantised or frozen
    already, and one in which nothing is left to quantise.
    """
    if scheme not in get_args(Scheme):
        raise QuantisationError(f"quantisation {scheme!r}; expected one of {list(get_args(Scheme))}")
    if scheme_of(model) is not None:
        raise QuantisationError(f"this model is quantised already ({scheme_of(model)}); load the original")
    if getattr(model, "frozen", False):
        raise QuantisationError(
            "this model is frozen: its weights are laid out for inference; quantise it before freeze()"
        )
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    names = [name for name, _ in model.named_modules()]
    if unused := [p for p in skip if p not in SKIP and not any(fnmatchcase(name, p) for name in names)]:
        raise QuantisationError(f"skip {unused} fits no layer; expected patterns of keys such as blocks.0.*")
    chosen = {
        name: module
        for name, module in linears.items()
        if not any(fnmatchcase(name, pattern) for pattern in skip)
        and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)
    }
    if not chosen:
        raise QuantisationError(
            f"a {type(model).__name__} has no linear layer left to quantise after skip {list(skip)}; expected some whose "
            f"widths divide by {MULTIPLE}"
        )
    before = 2 * sum(p.numel() for p in model.parameters())
    for name, linear in chosen.items():
        _replace(model, name, QuantLinear.of(linear, scheme))
    left = tuple(name for name in linears if name not in chosen)
    return Quantised(scheme, tuple(chosen), left, before, weight_bytes(model))


def scheme_of(model: nn.Module) -> Scheme | None:
    """How a model's layers are quantised; None where they are not."""
    found = (module.scheme for module in model.modules() if isinstance(module, QuantLinear))
    return next(found, None)


def quantised_tensors(model: nn.Module) -> set[str]:
    """Keys of the tensors whose type is part of an 8-bit layer."""
    layers = [name for name, module in model.named_modules() if isinstance(module, QuantLinear)]
    return {f"{name}.{part}" for name in layers for part in ("weight", "weight_scale")}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, what is not quantised counted in bf16."""
    eight = {id(t) for m in model.modules() if isinstance(m, QuantLinear) for t in (m.weight, m.weight_scale)}
    own = [t.nbytes for m in model.modules() if isinstance(m, QuantLinear) for t in (m.weight, m.weight_scale)]
    return sum(own) + 2 * sum(p.numel() for p in model.parameters() if id(p) not in eight)


def description(model: nn.Module) -> dict[str, Any] | None:
    """What an artefact's config says of its quantised layers, for `with_layers`; None where there are none."""
    scheme = scheme_of(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, QuantLinear)]
    return None if scheme is None else {"scheme": scheme, "layers": layers}


def with_layers(model: nn.Module, described: dict[str, Any]) -> None:
    """Put empty 8-bit layers where an artefact's config names them, in place, to load its weights into.
    Raises QuantisationError where it names what the model does not have."""
    scheme, layers = str(described.get("scheme")), described.get("layers", [])
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    if scheme not in FORMATS or any(name not in linears for name in layers):
        what = f"layers {[name for name in layers if name not in linears][:3]}" if scheme in FORMATS else scheme
        raise QuantisationError(
            f"the model has no {what} to quantise; expected a config.json written with these weights"
        )
    for name in layers:
        linear = linears[name]
        weight = torch.empty(linear.weight.shape, dtype=FORMATS[scheme][0], device=linear.weight.device)
        scale = torch.empty(linear.out_features, 1, device=linear.weight.device)
        bias = None if linear.bias is None else torch.empty(linear.out_features, device=linear.weight.device)
        _replace(model, name, QuantLinear(cast(Scheme, scheme), weight, scale, bias))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
