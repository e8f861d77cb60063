"""HunyuanVideo-1.5's video autoencoder. Its weights are under the Tencent Hunyuan Community licence."""

from worldline.models.hunyuan15_vae.codec import HunyuanVAE
from worldline.models.hunyuan15_vae.config import HunyuanVAEConfig

__all__ = ["HunyuanVAE", "HunyuanVAEConfig"]
