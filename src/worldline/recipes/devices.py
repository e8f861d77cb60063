"""Devices that a plan is made for: memory as their drivers report it, dense bf16 speed as their makers state it."""

from __future__ import annotations

from dataclasses import dataclass

from worldline.recipes.builder import did_you_mean
from worldline.schema import WorldlineError

GIB = 2**30
RESERVED = 2.5 * GIB
"""Context, workspaces and fragments, which no tensor shows."""
MARGIN = 0.08
"""Share of the memory that a plan leaves free: an estimate is not a measurement."""


@dataclass(frozen=True)
class Device:
    """One device."""

    name: str
    memory: float  # bytes
    tflops: float  # 10^12 operations a second, dense bf16
    utilisation: float = 0.4  # usual share of it in training: 400 of an H100's 989
    reserved: float = RESERVED  # bytes of it that no plan counts

    def holds(self, amount: float) -> bool:
        """Whether `amount` bytes of tensors fit, with what is reserved and the margin."""
        return amount + self.reserved <= self.memory * (1 - MARGIN)


DEVICES = {
    d.name: d
    for d in (
        Device("h200", 139.8 * GIB, 989),  # NVIDIA H200 datasheet, SXM
        Device("h100", 79.6 * GIB, 989),  # H100 datasheet, SXM
        Device("a100-80g", 80 * GIB, 312),  # A100 datasheet
        Device("a100-40g", 40 * GIB, 312),
        Device("l40s", 45 * GIB, 362),  # L40S datasheet, without sparsity
        Device("rtx4090", 24 * GIB, 165),  # Ada whitepaper, fp32 accumulation
        Device("b200", 180 * GIB, 2250),  # B200 datasheet, without sparsity
        Device(
            "cpu", 24 * GIB, 0.5, 1.0, reserved=0.0
        ),  # two cores with AMX: what the nano line has been measured to do
    )
}
ALIASES = {"a100": "a100-80g", "4090": "rtx4090"}


def parse_device(text: str) -> Device:
    """A known name, or NAME:MEMORY_GB:TFLOPS. Raises WorldlineError."""
    text = ALIASES.get(text.lower(), text.lower())
    if text in DEVICES:
        return DEVICES[text]
    name, *numbers = text.split(":")
    if len(numbers) != 2:
        raise WorldlineError(
            f"device {text!r}: {did_you_mean(text, DEVICES)}; or NAME:MEMORY_GB:TFLOPS, such as mi300x:192:1307"
        )
    try:
        memory, tflops = (float(x) for x in numbers)
    except ValueError as error:
        raise WorldlineError(
            f"device {text!r}: expected numbers in NAME:MEMORY_GB:TFLOPS, such as mi300x:192:1307"
        ) from error
    if not (0 < memory < 1e6 and 0 < tflops < 1e6):
        raise WorldlineError(f"device {text!r}: expected memory in GB and dense bf16 TFLOPS above 0")
    return Device(name, memory * GIB, tflops)
