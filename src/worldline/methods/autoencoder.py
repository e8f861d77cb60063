"""Codec training: pixel and gradient L1, with noise on the latents so that nearby codes decode to nearby frames."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.functional.warp import turning_field
from worldline.models.nano_vae import NanoVAE

FIELD_UNIT = 100.0  # displacements are about a hundredth of half the picture


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Weights of the codec's loss."""

    gradient_weight: float = 1.0  # L1 of horizontal and vertical differences: edges stay sharp
    latent_noise: float = 0.08  # std of the noise added to latents, relative to their own std
    latent_weight: float = 1e-3  # pulls latents to unit size
    smooth_weight: float = 0.01  # L1 between latents of neighbouring frames: calm codes are easier to generate
    motion_weight: float = 2.0  # L1 of differences between frames: motion inside a group counts
    field_weight: float = 10.0  # L1 between the decoder's displacement fields and those of the camera's known turns
    # Which part learns. Without the encoder every latent stays what it is, and so do the models trained on them;
    # `motion` is the decoder's displacement fields alone, by their squared error (L1 leaves them a tenth too small).
    trains: Literal["all", "decoder", "motion"] = "all"


@dataclass(frozen=True)
class PixelBatch:
    """video: [B, F, 3, h, w] in [-1, 1]; yaw: [B, F] heading in radians, positive to the right; K: [4] normalised."""

    video: Tensor
    yaw: Tensor
    K: Tensor


def turns_in_group(yaw: Tensor, stride: int) -> Tensor:
    """How far each frame of a group is turned from its last: yaw [B, F] -> [B, T - 1, stride], wrapped to half a turn."""
    groups = yaw[:, 1:].unflatten(1, (-1, stride))
    turned = groups - groups[..., -1:]
    return torch.remainder(turned + math.pi, 2 * math.pi) - math.pi


def autoencoder_loss(
    model: NanoVAE, batch: PixelBatch, cfg: AutoencoderConfig, rng: torch.Generator
) -> dict[str, Tensor]:
    """Returns `loss` and its parts. Windows of one frame have no motion terms."""
    video = batch.video
    with torch.set_grad_enabled(cfg.trains == "all" and torch.is_grad_enabled()):
        z = model.encode_raw(video)
    z_noisy = z + torch.randn(z.shape, generator=rng).to(z) * cfg.latent_noise * z.detach().std()
    if cfg.trains == "motion":
        error = _field_error(model, z_noisy, batch, learns_features=False)
        return {"loss": FIELD_UNIT**2 * error.square().mean(), "field": error.detach().abs().mean()}
    recon = model.decode_raw(z_noisy, None).float()
    error = recon - video
    pixel = error.abs().mean()
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    latent = z.float().square().mean()
    smooth = z.float().diff(dim=1).abs().mean() if z.shape[1] > 1 else z.new_zeros(())
    loss = pixel + cfg.gradient_weight * gradient + cfg.latent_weight * latent + cfg.smooth_weight * smooth
    field = z.new_zeros(())
    if z.shape[1] > 1:
        field = _field_error(model, z_noisy, batch).abs().mean()
        loss = loss + cfg.motion_weight * error.diff(dim=1).abs().mean() + cfg.field_weight * field
    mse = F.mse_loss(recon.detach().clamp(-1, 1), video) / 4  # on [0, 1]
    return {
        "loss": loss,
        "pixel": pixel.detach(),
        "gradient": gradient.detach(),
        "field": field.detach(),
        "psnr": -10 * mse.log10(),
    }


def _field_error(model: NanoVAE, z: Tensor, batch: PixelBatch, *, learns_features: bool = True) -> Tensor:
    """Displacement fields of raw latents z less those of the camera's turns [B, T - 1, stride, 2, H, W]."""
    target = turning_field(turns_in_group(batch.yaw, model.config.stride), batch.K, *z.shape[-2:])
    return model.motion_fields(z, learns_features=learns_features).float() - target


@torch.no_grad()
def latent_statistics(model: NanoVAE, videos: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Per-channel mean and std [C] of the raw latents of some videos [B, F, 3, h, w]."""
    z = torch.cat([model.encode_raw(v).float().transpose(0, 2).flatten(1) for v in videos], dim=1)  # [C, N]
    return z.mean(dim=1), z.std(dim=1)
