"""Before anything is loaded: does a run fit the machine it is about to start on?"""

from __future__ import annotations

import psutil
import torch

from worldline.recipes.devices import DEVICES, Device
from worldline.recipes.planning import RecipePlan, plan_recipe
from worldline.recipes.schema import Recipe
from worldline.schema import WorldlineError


class DoesNotFitError(WorldlineError):
    """A stage would run out of memory; the message says the cheapest mends."""


def this_device(processes: int) -> Device:
    """The accelerator of this machine, or one process's share of its memory. The speed of an unknown accelerator is a
    guess."""
    if not torch.cuda.is_available():
        cpu = DEVICES["cpu"]
        memory = psutil.virtual_memory().total / processes
        return Device("cpu", memory, cpu.tflops / processes, cpu.utilisation, cpu.reserved)
    found = torch.cuda.get_device_properties(0)
    plain = found.name.lower().replace(" ", "")
    known = next((d for name, d in DEVICES.items() if name.split("-")[0] in plain), None)
    return Device(found.name, float(found.total_memory), known.tflops if known else 100.0)


def preflight(recipe: Recipe, processes: int = 1, *, until: str | None = None) -> RecipePlan:
    """The plan of a recipe on this machine. Raises DoesNotFitError where a stage up to `until` does not fit, and
    WorldlineError where its samples do not divide over the processes."""
    plan = plan_recipe(recipe, this_device(processes), devices=processes)
    names = [s.name for s in plan.stages]
    reach = plan.stages[: names.index(until) + 1] if until in names else plan.stages
    bad = next((s for s in reach if not s.fits), None)
    if bad is not None:
        raise DoesNotFitError(
            f"stage '{bad.name}' needs {bad.peak / 2**30:.1f} GiB (phase {bad.phase}) of {plan.device.name}'s "
            f"{plan.device.memory / 2**30:.1f} on each of {processes} processes; {' '.join(bad.mends[:1]) or 'use more'}; "
            "or start with --no-preflight"
        )
    return plan
