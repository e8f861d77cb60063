"""One pass over [clean | noisy] frames: every chunk denoised against the true past (teacher forcing)."""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.models.backbone import Backbone, TextContext
from worldline.nn.attention import AttentionBackend, FrameMask
from worldline.schema import Cameras


def teacher_forced_velocity(
    model: Backbone,
    clean: Tensor,
    noisy: Tensor,
    sigma: Tensor,
    text: TextContext,
    *,
    cameras: Cameras | None,
    visibility: Visibility,
    sigma_clean: Tensor | None = None,
    attention: AttentionBackend = "auto",
) -> Tensor:
    """clean, noisy: [B, T, C, H, W]; sigma [B, T] of the noisy half; sigma_clean: noise level of the context if it was
    augmented (default 0). Both halves share positions and cameras. Returns the noisy half's velocity [B, T, C, H, W].

    Equals streaming block by block over a clean cache: noisy chunk i sees clean chunks before i and itself.
    """
    T = clean.shape[1]
    tokens = model.tokens_per_frame(*clean.shape[-2:])
    mask = FrameMask(visibility.teacher_forcing_mask(T), tokens, attention)
    levels = torch.cat([torch.zeros_like(sigma) if sigma_clean is None else sigma_clean, sigma], dim=1)
    both = None if cameras is None else cameras.tile(frames=2)
    positions = torch.arange(T).repeat(2)
    v = model(torch.cat([clean, noisy], dim=1), levels, text, cameras=both, positions=positions, mask=mask)
    return v[:, T:]
