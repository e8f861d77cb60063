"""How a role's weights lie on the processes that train together, and how its gradients are averaged over them.

`full` (FSDP2): every process keeps one part of each weight, its gradient, moments and average; blocks are gathered when
they run. `replicate`: everywhere whole, for small or mostly frozen networks: adapters on a shared base, networks without
transformer blocks, and what Muon trains, which needs whole matrices. Sharding may stay within groups of processes
(HSDP): then each group holds a copy, and only gradients travel between groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree

from worldline import dist
from worldline.models.backbone import TextContext
from worldline.models.frugal import Kept, blocks_of
from worldline.models.lora import LoRARole
from worldline.schema import WorldlineError
from worldline.train.config import TrainConfig

# Methods of backbones and of their blocks that make what a prompt is attended to by.
PROMPTS = ("text_context", "whole_context", "text_kv", "prompt_alone")


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """How training lies on its machines. Nothing here changes what is learnt."""

    # Processes over which weights are cut (HSDP): as many as a node has, where nodes are joined by a slow network. Each group
    # of so many holds a copy. null: over all of them.
    shard_group: int | None = None
    # With train.recompute, what is kept of every block beside its input: `attention` keeps the results of fused attention
    # (on accelerators), for a long clip most of what would be computed again.
    recompute_keeps: Kept = "nothing"

    def __post_init__(self) -> None:
        if self.shard_group is not None and self.shard_group < 1:
            raise WorldlineError(f"layout.shard_group is {self.shard_group}; expected a number of processes, or null")


def shares(cfg: TrainConfig, processes: int) -> tuple[int, int]:
    """(samples a micro batch, micro batches an update) such that the latter divide over `processes`, with as many samples
    an update as one process takes. The recipe's own micro batches are kept where their number allows: then noise and
    losses are those of one process. Raises WorldlineError where samples do not divide."""
    parts = processes // gcd(cfg.accumulation, processes)
    if cfg.batch_size % parts:
        samples = cfg.batch_size * cfg.accumulation
        near = -(-cfg.accumulation // processes) * processes
        raise WorldlineError(
            f"{samples} samples an update ({cfg.accumulation} micro batches of {cfg.batch_size}) do not divide over "
            f"{processes} data parallel processes; set train.accumulation to {near}, or use fewer processes"
        )
    return cfg.batch_size // parts, cfg.accumulation * parts


class Parallel:
    """The processes of one training run: on a single one, everything here does nothing."""

    def __init__(self, cfg: TrainConfig, device: torch.device, layout: LayoutConfig | None = None) -> None:
        self.cfg, self.device, self.layout = cfg, device, layout or LayoutConfig()
        groups = dist.arrange(cfg.sequence_parallel)
        self.processes = dist.world_size()
        self.dp, self.rank = groups.dp, dist.data_rank()
        self.mesh: DeviceMesh | None = None
        if self.processes > 1:
            self.mesh = self._mesh()
            _know_text_contexts()
        self.samples, self.micros = shares(cfg, self.dp)
        self._sharded: list[FSDPModule] = []
        self._resident: list[FSDPModule] = []  # those that stay gathered between forwards

    def _mesh(self) -> DeviceMesh:
        group = self.layout.shard_group or self.processes
        if self.processes % group:
            near = [n for n in range(1, self.processes + 1) if self.processes % n == 0]
            raise WorldlineError(f"layout.shard_group is {group} on {self.processes} processes; expected one of {near}")
        if group == self.processes:
            return init_device_mesh(self.device.type, (group,))
        shape = (self.processes // group, group)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))

    def own_micros(self) -> range:
        """Numbers of the micro batches of an update that this process takes: every dp-th."""
        return range(self.rank, self.micros, self.dp)

    def place(self, role: str, module: nn.Module, trained: bool, *, resident: bool = True) -> bool:
        """Spread a role's weights as the config says; whether they are sharded now. resident: whether `keep_gathered` is
        about this network. Raises WorldlineError."""
        if self.mesh is None or not self._may_shard(role, module, trained):
            return False
        # Losses never change a network's output in place, which is what this warns of.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        module.float()  # a group's weights have one type; bf16 ones of frozen roles are exact in fp32, cut into parts
        reshard = not (self.cfg.keep_gathered and resident)
        for block in blocks_of(module):
            fully_shard(block, mesh=self.mesh, reshard_after_forward=reshard)
            _gather_for(block)
        fully_shard(module, mesh=self.mesh, reshard_after_forward=reshard)
        _gather_for(module)
        # It reads weights of blocks outside of their forwards, when they are scattered.
        module.__dict__["conditions"] = _no_conditions
        parts = [m for m in module.modules() if isinstance(m, FSDPModule)]
        self._sharded += parts
        if reshard:
            module.register_forward_pre_hook(self._let_go)
        else:
            self._resident += parts
        return True

    def _let_go(self, module: nn.Module, args: Any) -> None:
        """Another network's turn: what a rollout kept gathered is in its way, and of use again only in the backward."""
        for part in self._resident:
            part.reshard()

    def _may_shard(self, role: str, module: nn.Module, trained: bool) -> bool:
        if self.cfg.sharding == "replicate":
            return False
        why = ""
        if isinstance(module, LoRARole) or (not all(p.requires_grad for p in module.parameters()) and trained):
            why = "adapters share a frozen base"
        elif not blocks_of(module):
            why = "it has no transformer blocks"
        if why and self.cfg.sharding == "full":
            raise WorldlineError(f"train.sharding is full, but role {role} cannot be sharded: {why}; set it to auto")
        return not why and self.cfg.optimizer != "muon"  # its frozen networks too: a target lies as its student does

    def settle(self) -> None:
        """Drop gathered weights, which the sharded ones have left behind or are about to."""
        for module in self._sharded:
            module.reshard()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean over processes of the gradients of replicated weights (those of sharded ones are averaged in backward)."""
        if self.processes == 1:
            return
        whole = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        for dtype in dict.fromkeys(g.dtype for g in whole):
            dist.mean_([g for g in whole if g.dtype == dtype])


def _gather_for(module: nn.Module) -> None:
    """Gather weights also for what reads them outside of `forward`: prompts."""
    for name in PROMPTS:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def _no_conditions(*_: Any) -> list[Any]:
    return []


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, any other as it is. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor (every process must ask), any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: Tensor, source: Tensor) -> None:
    """Copy a tensor that every process has whole, or sharded alike, into `target`."""
    if isinstance(target, DTensor) and not isinstance(source, DTensor):
        source = source.to(target.device)
        source = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
    local(target).copy_(local(source))


def fill_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be sharded. Strict."""
    own = module.state_dict()
    if not any(isinstance(v, DTensor) for v in own.values()):
        module.load_state_dict(state)
        return
    if own.keys() != state.keys():
        wrong = sorted(own.keys() ^ state.keys())
        raise WorldlineError(f"weights of another network: {len(wrong)} names differ, such as {wrong[:3]}")
    for name, tensor in own.items():
        fill(tensor, state[name])


def sharded(module: nn.Module) -> bool:
    """Whether a module's weights are spread over processes."""
    return any(isinstance(p, DTensor) for p in module.parameters())


_known = False


def _know_text_contexts() -> None:
    """Show FSDP the tensors inside of a TextContext: it gathers a network again before their backward."""
    global _known
    if not _known:
        _pytree.register_pytree_node(
            TextContext,
            lambda text: ([text.layers, text.valid, text.sources], None),
            lambda parts, _: TextContext(*parts),
        )
        _known = True


def like(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros for one state of a parameter's optimizer: placed as the parameter is, or (a counter) on its own."""
    if parameter.shape == shape and shape:
        return torch.zeros_like(parameter.detach(), dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=parameter.device)
