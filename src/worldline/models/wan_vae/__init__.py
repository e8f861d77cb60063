"""The Wan video autoencoders (Wan2.1 and Wan2.2), streamed with their state as a value."""

from worldline.models.wan_vae.codec import WanVAE
from worldline.models.wan_vae.config import WAN_VAE_VARIANTS, WanVAEConfig

__all__ = ["WAN_VAE_VARIANTS", "WanVAE", "WanVAEConfig"]
