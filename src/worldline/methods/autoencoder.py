"""Codec training: pixel and gradient L1, with noise on the latents so that nearby codes decode to nearby frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.models.nano_vae import NanoVAE


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Weights of the codec's loss."""

    gradient_weight: float = 1.0  # L1 of horizontal and vertical differences: edges stay sharp
    latent_noise: float = 0.08  # std of the noise added to latents, relative to their own std
    latent_weight: float = 1e-3  # pulls latents to unit size
    smooth_weight: float = 0.01  # L1 between latents of neighbouring frames: calm codes are easier to generate


def autoencoder_loss(model: NanoVAE, video: Tensor, cfg: AutoencoderConfig, rng: torch.Generator) -> dict[str, Tensor]:
    """video: [B, F, 3, h, w] in [-1, 1]. Returns `loss` and its parts."""
    z = model.encode_raw(video)
    noise = torch.randn(z.shape, generator=rng).to(z) * cfg.latent_noise * z.detach().std()
    recon = model.decode_raw(z + noise, None).float()
    error = recon - video
    pixel = error.abs().mean()
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    latent = z.float().square().mean()
    smooth = z.float().diff(dim=1).abs().mean() if z.shape[1] > 1 else z.new_zeros(())
    loss = pixel + cfg.gradient_weight * gradient + cfg.latent_weight * latent + cfg.smooth_weight * smooth
    mse = F.mse_loss(recon.detach().clamp(-1, 1), video) / 4  # on [0, 1]
    return {"loss": loss, "pixel": pixel.detach(), "gradient": gradient.detach(), "psnr": -10 * mse.log10()}


@torch.no_grad()
def latent_statistics(model: NanoVAE, videos: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Per-channel mean and std [C] of the raw latents of some videos [B, F, 3, h, w]."""
    z = torch.cat([model.encode_raw(v).float().transpose(0, 2).flatten(1) for v in videos], dim=1)  # [C, N]
    return z.mean(dim=1), z.std(dim=1)
