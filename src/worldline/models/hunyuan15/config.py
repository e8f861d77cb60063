"""Sizes of HunyuanVideo-1.5, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from worldline.schema import WorldlineError

TextMode = Literal["joint", "decoupled"]
QWEN, BYT5, IMAGE = range(3)  # sources of a prompt, and rows of the type embedding


@dataclass(frozen=True)
class HunyuanConfig:
    """Sizes of a HunyuanVideo-1.5 transformer.

    A prompt is one embedding of three sources in a row, of `text_lens` tokens (Qwen2.5-VL, byT5 of quoted words, SigLIP of
    the start image), the narrower ones padded with zeros to `text_dim`; later sources may be left out, of an embedding or of
    the model (length 0).
    """

    dim: int
    num_heads: int
    num_layers: int
    text_dim: int
    text_lens: tuple[int, int, int]
    byt5_dim: int = 1472
    byt5_hidden: int = 2048
    image_dim: int = 1152
    in_channels: int = 32  # of a latent; the input is noise, what is given, and a mask: 2 in_channels + 1
    out_channels: int = 32
    patch_size: tuple[int, int, int] = (1, 1, 1)
    ffn_dim: int = 8192
    refiner_layers: int = 2
    refiner_ffn_dim: int = 8192
    rope_dims: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 256.0
    freq_dim: int = 256
    eps: float = 1e-6
    text_mode: TextMode = "joint"
    camera: Literal["none", "branch", "fused"] = "none"
    camera_share: float = 0.5  # share of each head's dims that carry the camera in `fused`
    legacy_prope_cache: bool = False  # `branch`: past frames by their rotated keys and plain values, as minWM streamed
    motion: bool = False  # also modulate every frame by the camera's motion since the frame before (AdaLN)
    # And by so many discrete actions (AdaLN). Read off the camera's motion where they are 10, or freq_dim: WorldPlay's labels.
    actions: int = 0
    meanflow: bool = False  # step-distilled weights know the level a step goes to

    # What may differ from the pretrained model whose weights are loaded: parts of their own, or ways to run.
    FREE: ClassVar = ("camera", "camera_share", "motion", "actions", "text_mode", "legacy_prope_cache")

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 4:
            raise WorldlineError(f"dim {self.dim} over {self.num_heads} heads: expected a head width divisible by 4")
        if sum(self.rope_dims) != self.head_dim or any(d % 2 for d in self.rope_dims):
            raise WorldlineError(f"rope_dims {self.rope_dims}: expected even numbers that add up to {self.head_dim}")
        if self.patch_size[0] != 1:
            raise WorldlineError(f"patch_size {self.patch_size}: expected 1 latent frame a patch in time")
        if self.camera not in ("none", "branch", "fused"):
            raise WorldlineError(f"camera {self.camera!r}: HunyuanVideo takes none, branch or fused")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    @property
    def camera_dims(self) -> int:
        """Head dims that carry the camera, a multiple of four (groups) and of two (RoPE pairs): all of a `branch`."""
        return self.head_dim if self.camera == "branch" else int(self.head_dim * self.camera_share) // 4 * 4

    @property
    def rotary(self) -> tuple[float, tuple[int, int, int]]:
        """Base of the rotary frequencies; how many pairs turn with time, row and column."""
        t, h, w = self.rope_dims
        return self.rope_theta, (t // 2, h // 2, w // 2)

    @property
    def text_len(self) -> int:
        """Tokens of a prompt's embedding, all sources."""
        return sum(self.text_lens)


HUNYUAN_VARIANTS = {
    "nano-hy": HunyuanConfig(
        dim=256, num_heads=4, num_layers=5, text_dim=64, text_lens=(24, 0, 0), in_channels=16, out_channels=16,
        patch_size=(1, 2, 2), ffn_dim=1024, refiner_layers=1, refiner_ffn_dim=512, rope_dims=(16, 24, 24),
        text_mode="decoupled",
    ),
    "hunyuan-1.5": HunyuanConfig(dim=2048, num_heads=16, num_layers=54, text_dim=3584, text_lens=(1000, 256, 729)),
}  # fmt: skip
