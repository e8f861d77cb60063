"""What would make a stage fit a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from worldline.methods.ode import ODEConfig
from worldline.recipes.devices import Device
from worldline.recipes.footprint import Costs, assess
from worldline.recipes.schema import LoRASection, StageSection
from worldline.train.parallel import shares


def key(name: str) -> str:
    """Where a stage stands in a recipe."""
    return "base" if name == "base" else f"stages.{name}"


@dataclass(frozen=True)
class Mend:
    """Something that takes less memory: another section, or more devices."""

    text: str
    section: Callable[[StageSection], StageSection] = lambda section: section
    devices: int = 0  # that train together; 0 is as planned


def spread(section: StageSection, devices: int) -> dict[str, Any]:
    """What `devices` that train together change of a stage's setting: fewer samples each, and parts of the weights where
    they can be cut. Raises WorldlineError where samples do not divide."""
    train = section.train
    dp = max(1, devices // train.sequence_parallel)
    batch, micros = shares(train, dp)
    cut = section.lora is None and train.optimizer != "muon" and train.sharding != "replicate"
    share: dict[str, Any] = {"batch": batch, "accumulation": micros // dp, "sequence": train.sequence_parallel}
    # Networks that are cut are fp32 throughout, frozen ones as well.
    return share | ({"shards": devices, "half": False} if cut and devices > 1 else {})


def mends(name: str, costs: Costs, device: Device, devices: int) -> list[str]:
    """What would make a stage fit, cheapest first."""

    def fits(changes: Iterable[Mend]) -> bool:
        section, together = costs.section, devices
        for change in changes:
            section, together = change.section(section), change.devices or together
        return device.holds(assess(costs.of(section), spread(section, together)).peak)

    here = _options(name, costs.section, devices)
    for some in _growing(here):
        if fits(some):
            return [m.text for m in some]
    far = "all of these do not make it fit: a larger device, more of them, smaller pictures or shorter clips"
    return [*(m.text for m in here), far]


def shorter(costs: Costs, device: Device) -> int | None:
    """The most latent frames, two chunks at least, with which a stage fits; None where there are none."""
    whole, seen = costs.clip, costs.visibility
    low, high = 2, (whole.frames - seen.prefix) // seen.chunk - 1  # chunks
    best = None
    try:
        while low <= high:
            middle = (low + high) // 2
            costs.clip = replace(whole, frames=seen.prefix + middle * seen.chunk)
            if device.holds(assess(costs, {"batch": 1, "trajectories": 1}).peak):
                best, low = costs.clip.frames, middle + 1
            else:
                high = middle - 1
    finally:
        costs.clip = whole
    return best


def _growing(options: list[Mend]) -> Iterator[list[Mend]]:
    """Each alone, then the first two, three, ..."""
    yield from ([m] for m in options)
    yield from (options[:n] for n in range(2, len(options) + 1))


def _options(name: str, section: StageSection, devices: int) -> list[Mend]:
    """What a recipe can say."""
    at, train, options = key(name), section.train, section.options

    def training(**changes: Any) -> Callable[[StageSection], StageSection]:
        return lambda s: replace(s, train=replace(s.train, **changes))

    found = []
    if train.batch_size > 1:
        more = train.accumulation * train.batch_size
        text = f"--set {at}.train.batch_size=1 --set {at}.train.accumulation={more}"
        found.append(Mend(text, training(batch_size=1, accumulation=more)))
    if isinstance(options, ODEConfig) and options.clips_per_batch > 1:
        one = replace(options, clips_per_batch=1)
        found.append(Mend(f"--set {at}.options.clips_per_batch=1", lambda s: replace(s, options=one)))
    if not train.recompute:
        found.append(Mend(f"--set {at}.train.recompute=true (a third more operations)", training(recompute=True)))
    if train.ema_decay:
        found.append(Mend(f"--set {at}.train.ema_decay=0 (keeps no averaged weights)", training(ema_decay=0.0)))
    if train.optimizer == "adamw" and train.moments == "fp32":
        half = "AdamW's moments, rounded at random, in half the memory"
        found.append(Mend(f"--set {at}.train.moments=bf16 ({half})", training(moments="bf16")))
    if section.lora is None and name != "base":
        lora = LoRASection(rank=32, targets="all-linear")
        text = f"--set {at}.lora.rank=32 --set {at}.lora.targets=all-linear (adapters on frozen weights; wants a higher lr)"
        found.append(Mend(text, lambda s: replace(s, lora=lora)))
    several = 8
    if devices < several and not train.batch_size * train.accumulation % several and train.optimizer != "muon":
        found.append(Mend(f"--nproc {several} (as many devices, the weights spread over them)", devices=several))
    return found
