"""Which compute type a device is quick in."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def inference_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 where the device multiplies it natively (accelerators; CPUs with AVX512-BF16, AMX or Arm's bf16), fp32
    elsewhere: CPUs without it emulate bf16, slower than fp32."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases cannot say
    return torch.bfloat16 if any(known.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32
