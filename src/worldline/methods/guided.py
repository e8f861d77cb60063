"""Guided predictions of frozen teachers: the conditional and the unconditional pass as one batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldline.functional.flow import cfg
from worldline.functional.masks import Visibility
from worldline.models.backbone import Backbone
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import Cameras, TextEmbedding


def doubled(text: TextEmbedding, empty: TextEmbedding, cameras: Cameras | None) -> tuple[TextEmbedding, Cameras | None]:
    """[cond; uncond] prompts, both with the start images of `text`, and the cameras twice."""
    B = len(text.tokens)
    e = empty.under(text).expand(B)
    both = replace(text, tokens=torch.cat([text.tokens, e.tokens]), mask=torch.cat([text.mask, e.mask]))
    return both, None if cameras is None else cameras.tile(batch=2)


@torch.no_grad()
def guided_teacher_velocity(
    teacher: Backbone,
    clean: Tensor,
    noisy: Tensor,
    sigma: Tensor,
    text: TextEmbedding,
    empty: TextEmbedding,
    cameras: Cameras | None,
    visibility: Visibility,
    scale: float,
) -> Tensor:
    """Teacher-forced velocity u + scale (c - u) of the noisy half, [B, T, C, H, W]; one pass at scale 1."""
    if scale == 1.0:
        context = teacher.text_context(text)
        return teacher_forced_velocity(teacher, clean, noisy, sigma, context, cameras=cameras, visibility=visibility)
    both, views = doubled(text, empty, cameras)
    clean, noisy, sigma = (x.repeat(2, *([1] * (x.ndim - 1))) for x in (clean, noisy, sigma))
    context = teacher.text_context(both)
    v = teacher_forced_velocity(teacher, clean, noisy, sigma, context, cameras=views, visibility=visibility)
    cond, uncond = v.chunk(2)
    return cfg(uncond, cond, scale)
