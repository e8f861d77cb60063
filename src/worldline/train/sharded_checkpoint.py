"""Checkpoints of several processes, by torch.distributed.checkpoint: each writes its parts, any number of processes reads.

A folder beside those of one process (`checkpoint.py`), written aside and renamed by rank 0 when all parts are there:
step-00000500/: .metadata, *.distcp, state.json. Tensors go by flat names: `<role>/<weight>`, `<role>.ema/<weight>`,
`optimizer.<role>/<part>/<weight>/<moment>`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from worldline import dist
from worldline.schema import WorldlineError
from worldline.train.checkpoint import prune
from worldline.train.optim import Optimizers
from worldline.train.parallel import fill, like

Weights = Mapping[str, Mapping[str, Tensor]]  # of a role, or of its average, by name


def is_sharded(path: Path) -> bool:
    """Whether a whole checkpoint was written by several processes. `.metadata` is written last."""
    return (path / ".metadata").is_file()


def _named_moments(role: str, module: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    return {
        f"optimizer.{role}/{part}/{names[p]}/{key}": value
        for part, inner in optimizer.parts.items()
        for p, moments in inner.state.items()
        for key, value in moments.items()
    }


class ShardWriter:
    """Writes checkpoints of all processes together, one at a time; in the background if asked."""

    def __init__(self, root: Path, keep: int, best: str, background: bool) -> None:
        self.root, self.keep, self.best, self.background = root, keep, best, background
        self._running: tuple[Future[Any], int, dict[str, Any]] | None = None
        self._group: Any = None

    def save(
        self,
        step: int,
        weights: Weights,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizers],
        state: dict[str, Any],
    ) -> None:
        """Write checkpoint `step`; every process calls it. In the background, states are copied before it returns."""
        self.finish()
        tensors = {f"{stem}/{name}": t.detach() for stem, own in weights.items() for name, t in own.items()}
        for role, optimizer in optimizers.items():
            tensors |= _named_moments(role, modules[role], optimizer)
        if dist.is_main():
            for left in self.root.glob(".writing-*"):
                shutil.rmtree(left, ignore_errors=True)
            self._aside(step).mkdir(parents=True)
        dist.barrier()
        if not self.background:
            dcp.save(tensors, checkpoint_id=self._aside(step))
            self._publish(step, state)
            return
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        # What lies in host memory already is not copied by DCP, and training goes on changing it.
        copied = {name: t.clone() if t.device.type == "cpu" else t for name, t in tensors.items()}
        running = dcp.async_save(copied, checkpoint_id=self._aside(step), process_group=self._group)
        assert isinstance(running, Future)
        self._running = (running, step, state)

    def poll(self) -> None:
        """Publish what has been written in the background meanwhile."""
        if self._running is not None and self._running[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written. Raises whatever went wrong in the background."""
        if self._running is not None:
            running, step, state = self._running
            self._running = None
            running.result()
            self._publish(step, state)

    def _aside(self, step: int) -> Path:
        return self.root / f".writing-{step:08d}"

    def _publish(self, step: int, state: dict[str, Any]) -> None:
        if dist.is_main():
            final = self.root / f"step-{step:08d}"
            (self._aside(step) / "state.json").write_text(json.dumps(state))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(self._aside(step), final)
            prune(self.root, self.keep, self.best)


def load_sharded(
    path: Path, weights: Weights, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizers]
) -> dict[str, Any]:
    """Fill weights and optimizers in place, whatever number of processes wrote them and reads them; returns the state.
    Raises WorldlineError where the folder is not whole or of other networks."""
    try:
        found = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        tensors = {f"{stem}/{name}": t.detach() for stem, own in weights.items() for name, t in own.items()}
        if missing := sorted(tensors.keys() - found.keys()):
            raise WorldlineError(f"{len(missing)} tensors are not in it, such as {missing[0]}")
        moments: dict[str, Tensor] = {}
        owners = {}
        for role, optimizer in optimizers.items():
            by_name = dict(modules[role].named_parameters())
            for key, meta in found.items():
                head, _, rest = key.partition("/")
                if head == f"optimizer.{role}":
                    part, name, moment = rest.split("/")
                    assert isinstance(meta, dcp.metadata.TensorStorageMetadata)
                    moments[key] = like(by_name[name], meta.size, meta.properties.dtype)
                    owners[key] = (optimizer.parts[part], by_name[name], moment)
        dcp.load({**tensors, **moments}, checkpoint_id=path, no_dist=dist.world_size() == 1)
        for key, (inner, parameter, moment) in owners.items():
            inner.state[parameter][moment] = moments[key]
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        return state
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, dcp.CheckpointException) as error:
        raise WorldlineError(
            f"checkpoint {path} cannot be read ({error}); delete that folder to resume from the one before"
        ) from error


def load_moments(optimizer: Optimizers, saved: Mapping[str, Any]) -> None:
    """Moments that one process wrote, into the optimizer of sharded weights."""
    for part, inner in optimizer.parts.items():
        parameters = [p for group in inner.param_groups for p in group["params"]]
        for index, moments in saved[part]["state"].items():
            for key, value in moments.items():
                own = like(parameters[index], value.shape, value.dtype)
                fill(own, value)
                inner.state[parameters[index]][key] = own
