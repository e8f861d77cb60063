"""Layers whose weights lie as the CPU's bf16 kernels want them: ordered once, not in every call.

A stream multiplies few tokens (24 of a nano chunk) by every weight, so that bringing weights into order is much of the cost.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from worldline.nn.layers import GELUProjection

Activation = Literal["none", "relu", "gelu"]
ROWS = 24  # tokens of a nano chunk: weights are ordered for about so many; other numbers work, somewhat slower


class PackedLinear(nn.Module):
    """activation(x W^T + b) in bf16, without gradients; gelu is the tanh form. Takes and gives any leading shape."""

    def __init__(self, linear: nn.Linear, activation: Activation = "none") -> None:
        super().__init__()
        self.activation = activation
        # No buffers: their layout is this machine's own, and nothing to save.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16(), ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2).to(torch.bfloat16)
        algorithm = "tanh" if self.activation == "gelu" else ""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self.weight, self.bias, self.activation, [], algorithm)
        return y.view(*x.shape[:-1], -1)


class ConvReLU(nn.Conv2d):
    """relu(convolution), which packed is one pass over the picture."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, h, w]."""
        return super().forward(x).relu()


class PackedConv2d(nn.Module):
    """A convolution (with its relu) in bf16, without gradients, channels last. The best order of its weights depends on the
    size of the picture: it is found at the first call with one."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.activation: Activation = "relu" if isinstance(conv, ConvReLU) else "none"
        self.weight, self.stride, self.dilation, self.groups = (
            conv.weight.detach().bfloat16(), conv.stride, conv.dilation, conv.groups,
        )  # fmt: skip
        self.padding = [int(p) for p in conv.padding]
        self.bias = None if conv.bias is None else conv.bias.detach().bfloat16()
        self._ordered: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, h, w]."""
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        how = (self.padding, self.stride, self.dilation, self.groups)
        if x.shape not in self._ordered:
            ordered = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *how, x.shape)
            self._ordered = {x.shape: ordered, **dict(list(self._ordered.items())[:3])}
        weight = self._ordered[x.shape]
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *how, self.activation, [], "")
        return y


def packs(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a layer can be packed: a bf16 weight on a CPU, for which this build of PyTorch has the kernels."""
    ops = ("_linear_pointwise", "_convolution_pointwise")
    known = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, op) for op in ops)
    return known and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.bfloat16


def pack_convolutions(module: nn.Module) -> None:
    """Replace every 2D convolution below `module` that can be packed."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and type(child) in (nn.Conv2d, ConvReLU) and packs(child):
            setattr(module, name, PackedConv2d(child))
        else:
            pack_convolutions(child)


def pack_projections(module: nn.Module) -> None:
    """Replace every linear layer below `module` that can be packed, a projection and its GELU as one."""
    for name, child in module.named_children():
        if isinstance(child, GELUProjection) and isinstance(child.proj, nn.Linear) and packs(child.proj):
            setattr(module, name, PackedLinear(child.proj, "gelu"))
        elif isinstance(child, nn.Linear) and packs(child):
            setattr(module, name, PackedLinear(child))
        else:
            pack_projections(child)
