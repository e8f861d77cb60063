"""One pass over [clean | noisy] frames: every chunk denoised against the true past (teacher forcing)."""

from __future__ import annotations

import torch
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.models.backbone import Backbone, TextContext
from worldline.nn.attention import AttentionBackend, FrameMask
from worldline.rollout.history import HistoryPolicy, memory_mask, recalled
from worldline.schema import Cameras, WorldlineError


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
    history: HistoryPolicy | None = None,
) -> Tensor:
    """clean, noisy: [B, T, C, H, W]; sigma [B, T] of the noisy half; sigma_clean: noise level of the context if it was
    augmented (default 0). Both halves share positions and cameras. history: what chunks recall from beyond their windows, as
    a stream under these cameras would; the frames recalled stand before both halves once more, each alone. Returns the noisy
    half's velocity [B, T, C, H, W].

    Equals streaming block by block over a clean cache: noisy chunk i sees clean chunks before i and itself. Raises
    WorldlineError where a clip is longer than the policy's horizon, beyond which a frame stands elsewhere for every chunk.
    """
    T, held, again = clean.shape[1], None, list[int]()
    if history is not None:
        if cameras is None:
            raise WorldlineError("a memory that is chosen by cameras, and clips without; expected cameras")
        if history.horizon is not None and history.horizon < T:
            raise WorldlineError(
                f"clips of {T} latents and a memory with horizon {history.horizon}; expected one as long"
            )
        held = recalled(history, visibility, cameras)
        again = sorted({f for row in held for seen in row for f in seen})
    tokens = model.tokens_per_frame(*clean.shape[-2:])
    visible = visibility.teacher_forcing_mask(T) if held is None else memory_mask(visibility, held, again)
    order = [*again, *range(T)]
    clean_levels = torch.zeros_like(sigma) if sigma_clean is None else sigma_clean
    x, levels = (torch.cat([a[:, order] if again else a, b], 1) for a, b in ((clean, noisy), (clean_levels, sigma)))
    both = None if cameras is None else cameras.tile(frames=2) if not again else cameras[[*order, *range(T)]]
    positions = torch.tensor([*order, *range(T)])
    mask = FrameMask(visible, tokens, attention)
    v = model(x, levels, text, cameras=both, positions=positions, mask=mask)
    return v[:, len(order) :]
