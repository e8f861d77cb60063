"""An adversarial loss on the features of a frozen video model: real clips against generated ones, both noised.

Small convolutional heads read what some blocks of the teacher make of a noised clip (latents throughout: no picture network, no
decoding), as DMD2 (arXiv:2405.14867, section 4.3) does with its critic; that the teacher is frozen keeps features still. Hinge
losses (arXiv:1705.02894), and the difference form of R1 that needs no second derivative (APT, arXiv:2501.08316, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from worldline import dist
from worldline.functional.losses import hinge_discriminator_loss, hinge_generator_loss
from worldline.models.backbone import Backbone
from worldline.models.lora import LoRARole
from worldline.schema import Cameras, TextEmbedding, WorldlineError


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The heads, and what keeps them calm."""

    blocks: tuple[int, ...] | None = None  # of the teacher, whose outputs are read; null is the middle and the last one
    width: int = 64  # channels of a head
    smoothness: float = 1.0  # weight of the R1 term
    perturbation: float = 0.1  # standard deviation of the noise it moves real inputs by

    def __post_init__(self) -> None:
        if self.width < 1 or self.smoothness < 0 or self.perturbation <= 0:
            raise WorldlineError(f"{self}: expected width >= 1, smoothness >= 0 and perturbation > 0")

    def build(self, teacher: Backbone) -> Discriminator:
        """teacher: a frozen backbone with `blocks` that give [B, T, S, config.dim]. Raises WorldlineError."""
        found = _blocks(teacher)
        taken = ((len(found) - 1) // 2, len(found) - 1) if self.blocks is None else self.blocks
        if wrong := [i for i in taken if not 0 <= i < len(found)]:
            raise WorldlineError(f"gan.blocks {wrong}: the teacher has blocks 0 to {len(found) - 1}")
        return Discriminator(self, tuple(dict.fromkeys(taken)), teacher.config.dim)


def _blocks(teacher: Backbone) -> Sequence[nn.Module]:
    blocks = getattr(teacher.base if isinstance(teacher, LoRARole) else teacher, "blocks", None)
    if not blocks:
        raise WorldlineError(f"a {type(teacher).__name__} has no blocks whose features a discriminator could read")
    return list(blocks)


def features(
    teacher: Backbone, taken: Sequence[int], x: Tensor, sigma: Tensor, text: TextEmbedding, cameras: Cameras | None
) -> list[Tensor]:
    """What blocks `taken` make of noised clips x [B, T, C, H, W]: [B, D, T, h, w] each, fp32. Gradients run to x."""
    found: dict[int, Tensor] = {}

    def gather(_: Tensor) -> None:
        # Sharded weights come back in backward where the gradient enters a network by its output; here it does by a block's.
        if isinstance(teacher, FSDPModule):
            teacher.unshard()

    def keep(block: int, module: nn.Module, args: Any, out: Tensor | tuple[Tensor, Any]) -> None:
        out = out if isinstance(out, Tensor) else out[0]
        found[block] = dist.all_tokens(out, 2) if dist.sequence() > 1 else out
        if out.requires_grad:
            out.register_hook(gather)

    blocks = _blocks(teacher)
    hooks = [blocks[i].register_forward_hook(partial(keep, i)) for i in taken]
    try:
        teacher(x, sigma, teacher.text_context(text), cameras=cameras)
    finally:
        for hook in hooks:
            hook.remove()
    H, W = x.shape[-2:]
    rows = round((found[taken[0]].shape[2] * H / W) ** 0.5)  # patches are square
    return [found[i].float().movedim(-1, 1).unflatten(-1, (rows, -1)) for i in taken]


class Head(nn.Module):
    """Features [B, D, T, h, w] -> a logit for every place [B, T, h, w]. Time is padded with its own end, never wrapped."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.into = nn.Conv3d(dim, width, 1)
        self.around = nn.Conv3d(width, width, 3, padding=1, padding_mode="replicate")
        self.out = nn.Conv3d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)  # blocks differ in size by orders
        x = F.leaky_relu(self.into(x), 0.2)
        return self.out(x + F.leaky_relu(self.around(x), 0.2)).squeeze(1)


class Discriminator(nn.Module):
    """A head for every block that is read. It never holds the teacher."""

    def __init__(self, cfg: AdversarialConfig, taken: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.cfg, self.taken = cfg, taken
        self.heads = nn.ModuleList(Head(dim, cfg.width) for _ in taken)

    def forward(self, found: Sequence[Tensor], given: int = 0) -> Tensor:
        """Features of every block read -> logits [B, n] of all places of all generated frames."""
        logits = [head(x)[:, given:].flatten(1) for head, x in zip(self.heads, found, strict=True)]
        return torch.cat(logits, dim=1)

    def fool(
        self, teacher: Backbone, x: Tensor, sigma: Tensor, text: TextEmbedding, cameras: Cameras | None, given: int
    ) -> Tensor:
        """The generator's loss on noised generated clips: -mean D."""
        return hinge_generator_loss(self(features(teacher, self.taken, x, sigma, text, cameras), given=given))

    def loss(
        self,
        teacher: Backbone,
        real: Tensor,
        fake: Tensor,
        sigma: Tensor,
        text: TextEmbedding,
        cameras: Cameras | None,
        given: int,
        noise: Tensor,
    ) -> dict[str, Tensor]:
        """Hinge loss on noised clips of both kinds plus w E (D(real) - D(real + p n))^2. noise: n, standard normal."""

        def logits(x: Tensor) -> Tensor:
            with torch.no_grad():
                found = features(teacher, self.taken, x, sigma, text, cameras)
            return self(found, given=given)

        on_real, on_fake = logits(real), logits(fake)
        loss = hinge_discriminator_loss(on_real, on_fake)
        values = {"real": on_real.detach().mean(), "fake": on_fake.detach().mean()}
        if self.cfg.smoothness > 0:
            moved = torch.where(sigma[..., None, None, None] > 0, real + self.cfg.perturbation * noise, real)
            rough = (on_real - logits(moved)).square().mean()
            loss, values["roughness"] = loss + self.cfg.smoothness * rough, rough.detach()
        return {"loss": loss, **values}
