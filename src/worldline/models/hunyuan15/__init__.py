"""HunyuanVideo-1.5, a transformer of two streams. Its weights are under the Tencent Hunyuan Community licence."""

from worldline.models.hunyuan15.config import HUNYUAN_VARIANTS, HunyuanConfig
from worldline.models.hunyuan15.model import HunyuanModel

__all__ = ["HUNYUAN_VARIANTS", "HunyuanConfig", "HunyuanModel"]
