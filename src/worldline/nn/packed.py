"""Linear layers whose weights lie as the CPU's bf16 kernels want them: ordered once, not in every call.

A stream multiplies few tokens (24 of a nano chunk) by every weight, so that bringing weights into order is much of the cost.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["none", "gelu"]
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


def packs(linear: nn.Linear) -> bool:
    """Whether a layer can be packed: a bf16 weight on a CPU, for which this build of PyTorch has the kernels."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and linear.weight.device.type == "cpu" and linear.weight.dtype == torch.bfloat16
