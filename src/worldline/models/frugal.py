"""Training in less memory, with the same results: frozen matrices in bf16, activations of blocks computed again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from worldline.models.backbone import TransformerBlock
from worldline.models.lora import LoRARole, as_now
from worldline.nn.seen import Seen
from worldline.schema import WorldlineError


def blocks_of(model: nn.Module) -> list[TransformerBlock]:
    """The transformer blocks of a network, or of the base that a role looks at."""
    model = model.base if isinstance(model, LoRARole) else model
    return [module for module in model.modules() if isinstance(module, TransformerBlock)]


Kept = Literal["nothing", "attention"]
FUSED = ("scaled_dot_product", "flash_attention", "efficient_attention", "cudnn_attention", "flex_attention")


def recompute_blocks(model: nn.Module, keeps: Kept = "nothing") -> None:
    """Keep only the inputs of every block for backward and compute the rest again, in place: a third more operations.
    keeps: `attention` also keeps what fused attention gave, whose cost grows with the square of the tokens.

    Exact: the same adapter acts the second time, and a rollout's past is held as it was. Raises WorldlineError where the
    model has no transformer blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise WorldlineError(f"a {type(model).__name__} has no blocks to recompute; set train.recompute to false")
    for block in blocks:
        block.__dict__["forward"] = MethodType(partial(_recomputed, keeps), block)


def _policy(ctx: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    fused = any(name in str(op) for name in FUSED)
    return CheckpointPolicy.MUST_SAVE if fused else CheckpointPolicy.PREFER_RECOMPUTE


def _recomputed(
    keeps: Kept, block: TransformerBlock, x: Tensor, mod: Any, text: Any, rope: Any, seen: Seen, layer: int
) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(x, mod, text, rope, seen, layer)
    # By the time of the backward, the rollout's past has grown and another adapter may act.
    seen = seen if seen.cache is None else replace(seen, cache=seen.cache.fork())
    again = as_now(block)

    def run(x: Tensor) -> Any:
        with again():
            return forward(x, mod, text, rope, seen, layer)

    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if keeps == "attention":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(run, x, **options)


SHAPES = 64


def compile_blocks(model: nn.Module) -> None:
    """Compile every transformer block, in place; they share what is compiled. Nothing else of the model is.

    For each shape on its own: one graph for all, made when a second shape comes, may serve where a block is computed again
    and not where it was first, which then keep different tensors (pytorch#166926). A rollout's past has many lengths, so
    the number of shapes after which the compiler gives up, with the same end, is raised.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for block in blocks_of(model):
        block.compile(dynamic=False)


@torch.no_grad()
def halve_frozen(model: nn.Module) -> None:
    """Store the frozen linear layers of blocks in bf16, in place; adapters are to be added after. Under bf16 autocast,
    which rounds them so for every product, nothing changes; what is computed in fp32 (clock, norms, embeddings) stays."""
    for block in blocks_of(model):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                for p in module.parameters():
                    if not p.requires_grad:
                        p.data = p.data.bfloat16()
