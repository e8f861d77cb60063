"""Any diffusers video transformer as a frozen bidirectional teacher: a score without a port.

It answers whole clips, on the flow-matching conventions of this package: velocity = eps - x0 at x = (1 - sigma) x0 +
sigma eps, clock 1000 sigma. Latents must be those of its own codec, normalised as its pipeline normalises them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.models.backbone import Backbone, TextContext
from worldline.models.convert.reading import locate, open_source
from worldline.models.text_cache import digest, sample_digest
from worldline.nn.attention import FrameMask
from worldline.nn.kv_cache import KVCache
from worldline.schema import Cameras, ShapeError, TextEmbedding, WorldlineError


class TeacherError(WorldlineError):
    """A use that a frozen bidirectional teacher does not allow, or a transformer that is not known."""


@dataclass(frozen=True)
class TeacherCall:
    """What a transformer is asked. x: [B, C, T, H, W] in the weights' type; clock: fp32 1000 sigma, [B] where all frames
    share a level, [B, T] where not; tokens: [B, L, D], zero where padded; mask: bool [B, L]; inputs: further keywords."""

    x: Tensor
    clock: Tensor
    tokens: Tensor
    mask: Tensor
    inputs: Mapping[str, Any]

    def per_token(self, tokens_per_frame: int) -> Tensor:
        """The clock, [B] as it is, [B, T] repeated for every token of its frame: [B, T * tokens_per_frame]."""
        return self.clock if self.clock.ndim == 1 else self.clock.repeat_interleave(tokens_per_frame, dim=1)


Ask = Callable[[nn.Module, TeacherCall], Tensor]  # -> velocity [B, C, T, H, W]
Inputs = Callable[[TextContext], Mapping[str, Any]]


def _patch(transformer: Any) -> tuple[int, int, int]:
    """Patch sizes (time, height, width) of a transformer."""
    return _patch_of(getattr(transformer, "config", {}))


def _patch_of(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Patch sizes (time, height, width), however this config spells them."""
    size, time = config.get("patch_size", 1), config.get("patch_size_t", 1)
    return (time or 1, size, size) if isinstance(size, int) else tuple(size)


def _ask_wan(transformer: Any, call: TeacherCall) -> Tensor:
    _, ph, pw = _patch(transformer)
    clock = call.per_token((call.x.shape[-2] // ph) * (call.x.shape[-1] // pw))
    return transformer(call.x, clock, call.tokens, return_dict=False, **call.inputs)[0]


def _ask_ltx(transformer: Any, call: TeacherCall) -> Tensor:
    """LTX takes one token a latent pixel and the grid's spacing in seconds and pixels (its codec at 25 frames a second)."""
    if _patch(transformer) != (1, 1, 1):
        raise TeacherError(
            f"LTX with patches {_patch(transformer)}: expected 1 token a latent pixel; pass ask= for others"
        )
    T, H, W = call.x.shape[-3:]
    velocity = transformer(
        call.x.flatten(2).transpose(1, 2),
        call.tokens,
        call.per_token(H * W),
        call.mask,
        **{"num_frames": T, "height": H, "width": W, "rope_interpolation_scale": (8 / 25, 32, 32), **call.inputs},
        return_dict=False,
    )[0]
    return velocity.transpose(1, 2).unflatten(2, (T, H, W))


def _ask_hunyuan(transformer: Any, call: TeacherCall) -> Tensor:
    needs = ["pooled_projections", *(["guidance"] if transformer.config.guidance_embeds else [])]
    if missing := [name for name in needs if name not in call.inputs]:
        raise TeacherError(f"HunyuanVideo also needs {missing}; pass inputs=, a function of the prompt that gives them")
    return transformer(call.x, call.clock, call.tokens, call.mask, return_dict=False, **call.inputs)[0]


@dataclass(frozen=True)
class Family:
    """How one transformer class is asked, what its config calls the prompt's width, whether frames may differ in sigma,
    whether a prompt is all it needs (no further `inputs`)."""

    ask: Ask
    text_width: str
    per_frame: bool
    complete: bool = True


FAMILIES = {
    "WanTransformer3DModel": Family(_ask_wan, "text_dim", True),
    "LTXVideoTransformer3DModel": Family(_ask_ltx, "caption_channels", True),
    "HunyuanVideoTransformer3DModel": Family(_ask_hunyuan, "text_embed_dim", False, complete=False),
}


@dataclass(frozen=True)
class Described:
    """What a local diffusers folder says of its transformer, without loading it."""

    place: Path  # the transformer's own folder
    name: str  # of its class, one of FAMILIES
    config: Mapping[str, Any]
    per_frame: bool  # as its pipeline says
    parameters: int

    @property
    def family(self) -> Family:
        """How it is asked."""
        return FAMILIES[self.name]

    @property
    def text_width(self) -> int | None:
        """Of the prompts it takes; None where its config does not say."""
        return self.config.get(self.family.text_width)

    @property
    def width(self) -> int:
        """Of its tokens."""
        return int(self.config["num_attention_heads"]) * int(self.config["attention_head_dim"])

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent cells of a token: time, height, width."""
        return _patch_of(self.config)

    def fingerprint(self) -> str:
        """A hash of config and weights (pages of every tensor)."""
        import safetensors

        index = self.place / "diffusion_pytorch_model.safetensors.index.json"
        named = (
            set(_json(index)["weight_map"].values()) if index.is_file() else {index.name.removesuffix(".index.json")}
        )
        files = [self.place / str(name) for name in sorted(named)]
        if not all(file.is_file() for file in files):
            raise TeacherError(f"{self.place} has no {files[0].name}; expected weights as safetensors")
        opened = [safetensors.safe_open(str(file), "pt") for file in files]
        tensors = ((key, file.get_tensor(key)) for file in opened for key in file.keys())  # noqa: SIM118, not a dict
        return digest(json.dumps(self.config, sort_keys=True), sample_digest(tensors, torch.float32))[:12]


def describe(folder: str | Path) -> Described:
    """The transformer of a local diffusers folder, a pipeline's or its own, from its config and headers.

    Raises TeacherError where there is none, it is of no class in FAMILIES, or the pipeline has two experts (Wan2.2 A14B);
    ConvertError where its weights are absent or damaged.
    """
    place, pipeline = _place(Path(folder))
    config = _json(place / "config.json")
    name = config.get("_class_name")
    if name not in FAMILIES:
        raise TeacherError(f"{place} is a {name}; expected one of {', '.join(FAMILIES)}")
    source = open_source(locate(place))
    count = sum(info.count for infos in source.groups.values() for info in infos.values())
    return Described(place, name, config, bool(pipeline.get("expand_timesteps", False)), count)


def is_diffusers_folder(folder: str | Path) -> bool:
    """Whether a folder is a diffusers pipeline or one of its parts."""
    folder = Path(folder)
    if (folder / "model_index.json").is_file() or (folder / "transformer" / "config.json").is_file():
        return True
    return (folder / "config.json").is_file() and "_class_name" in _json(folder / "config.json")


def _place(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The transformer's own folder, and the pipeline's settings (empty where it stands alone)."""
    pipeline = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    if pipeline.get("boundary_ratio") is not None:
        raise TeacherError(
            f"{folder} has two experts, split at noise level {pipeline['boundary_ratio']}; name one of its folders, "
            "transformer (noisy) or transformer_2 (clean), and ask it at its levels only"
        )
    whole = bool(pipeline) or (folder / "transformer" / "config.json").is_file()
    place = folder / "transformer" if whole else folder
    if not (place / "config.json").is_file():
        raise TeacherError(f"{place} has no config.json; expected a local diffusers pipeline or transformer folder")
    return place, pipeline


class DiffusersTeacher(Backbone):
    """A frozen transformer behind the backbone's interface. Whole clips only: no mask, no cache, no cameras (ignored).

    transformer: of a class in FAMILIES, or of any with `ask`. per_frame: whether frames may differ in sigma; an opinion on
    the weights (Wan2.2 5B was trained so, Wan2.1 not), so it is off unless said. inputs: function of the prompt giving
    further keywords of the transformer, e.g. a pooled prompt. It computes in the weights' own type, whatever autocast.
    """

    def __init__(
        self, transformer: nn.Module, *, per_frame: bool = False, ask: Ask | None = None, inputs: Inputs | None = None
    ) -> None:
        super().__init__()
        name = type(transformer).__name__
        family = FAMILIES.get(name)
        if ask is None and family is None:
            raise TeacherError(
                f"{name} is no transformer known here ({', '.join(FAMILIES)}); pass ask=, a function (transformer, "
                "TeacherCall) -> velocity eps - x0 [B, C, T, H, W], which also converts where it predicts anything else"
            )
        if per_frame and ask is None and family is not None and not family.per_frame:
            raise TeacherError(f"{name} takes one noise level a clip; leave per_frame off")
        self.transformer, self.per_frame, self.inputs = transformer, per_frame, inputs
        self.ask: Ask = ask or family.ask  # type: ignore[union-attr]
        self.config: Any = getattr(transformer, "config", {})
        self.text_width = self.config.get(family.text_width) if family else None
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        per_frame: bool | None = None,
        ask: Ask | None = None,
        inputs: Inputs | None = None,
    ) -> DiffusersTeacher:
        """The transformer of a local diffusers folder (a whole pipeline's or the transformer's own); nothing is fetched.

        per_frame: default as the pipeline's `expand_timesteps` says, else off. Raises TeacherError where the folder holds
        no transformer, or two experts (Wan2.2 A14B).
        """
        place, pipeline = _place(Path(folder))
        name = _json(place / "config.json").get("_class_name")
        try:
            import diffusers
        except ImportError as error:
            raise TeacherError("diffusers is not installed; pip install 'worldline[oracle]'") from error
        made = getattr(diffusers, name, None) if isinstance(name, str) else None
        if made is None:
            raise TeacherError(f"{place}: class {name!r} is not in diffusers {diffusers.__version__}; update it")
        transformer = made.from_pretrained(place, torch_dtype=dtype, local_files_only=True)
        if per_frame is None:
            per_frame = bool(pipeline.get("expand_timesteps", False))
        return cls(transformer.to(device), per_frame=per_frame, ask=ask, inputs=inputs)

    def text_context(self, text: TextEmbedding) -> TextContext:
        """The prompt as one pair (tokens [B, L, D], zero where padded; mask [B, L]): the transformer embeds it itself."""
        if self.text_width is not None and text.tokens.shape[-1] != self.text_width:
            raise ShapeError(
                f"text of width {text.tokens.shape[-1]} ({text.fingerprint or 'unknown encoder'}): this teacher expects "
                f"{self.text_width}; encode the prompt with its own text encoder"
            )
        return TextContext(((text.tokens * text.mask[..., None], text.mask),))

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame."""
        _, ph, pw = _patch(self.transformer)
        return (height // ph) * (width // pw)

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        text: TextContext,
        *,
        cameras: Cameras | None = None,
        positions: Tensor | None = None,
        mask: FrameMask | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x: [B, T, C, H, W]; sigma: [B, T]; text: from this teacher's `text_context` -> velocity [B, T, C, H, W] fp32.
        Cameras are ignored; a mask, a cache or positions other than 0.. raise TeacherError."""
        self._check(x, sigma, text, positions, mask, cache)
        clock = 1000.0 * sigma.float()
        if bool((sigma == sigma[:, :1]).all()):
            clock = clock[:, 0]
        elif not self.per_frame:
            raise TeacherError(
                f"sigma differs between the frames of a clip ({sigma.min():.3g} to {sigma.max():.3g}), but this teacher "
                "takes one level a clip; use no given frames (prefix 0), or per_frame=True if its weights know better"
            )
        tokens, known = text.layers[0]
        dtype = _dtype(self.transformer)
        inputs = self.inputs(text) if self.inputs is not None else {}
        call = TeacherCall(x.transpose(1, 2).to(dtype), clock, tokens.to(dtype), known, inputs)
        with torch.autocast(x.device.type, enabled=False):
            velocity = self.ask(self.transformer, call)
        if velocity.shape != call.x.shape:
            raise ShapeError(
                f"the transformer gave {tuple(velocity.shape)} for x {tuple(call.x.shape)}: expected the same"
            )
        return velocity.transpose(1, 2).float()

    def _check(
        self,
        x: Tensor,
        sigma: Tensor,
        text: TextContext,
        positions: Tensor | None,
        mask: FrameMask | None,
        cache: KVCache | None,
    ) -> None:
        if mask is not None or cache is not None:
            raise TeacherError(
                f"{'a mask' if mask is not None else 'a cache'} for a DiffusersTeacher: a bidirectional teacher has none, "
                "every frame sees the whole clip; use it as a real score or with rollout.bidirectional.sample, and a "
                "converted checkpoint (worldline convert) for teacher forcing and streaming"
            )
        B, T, C, H, W = x.shape
        if sigma.shape != (B, T):
            raise ShapeError(f"sigma {tuple(sigma.shape)}: expected one noise level per latent frame, {(B, T)}")
        if positions is not None and positions.tolist() != list(range(T)):
            raise TeacherError(
                f"positions {positions.tolist()[:8]}: a bidirectional teacher knows whole clips, 0..{T - 1}"
            )
        if len(text.layers) != 1 or text.layers[0][0].ndim != 3:
            raise ShapeError("this prompt was embedded by another model; use the text_context of the teacher itself")
        channels = self.config.get("in_channels", C)
        if channels != C:
            raise ShapeError(
                f"latents of {C} channels: this teacher expects {channels} (its own codec, no image inputs)"
            )
        pt, ph, pw = _patch(self.transformer)
        if T % pt or H % ph or W % pw:
            raise ShapeError(f"latent clip {T}x{H}x{W} does not divide into patches of {pt}x{ph}x{pw}")

    @property
    def reanchors(self) -> bool:
        """A teacher has no world to move."""
        return False

    def reanchor(self, cache: KVCache, world: Tensor) -> None:
        """Never: there is no cache."""
        raise TeacherError("a bidirectional teacher has no cache to move to another world frame")

    def requires_grad_(self, requires_grad: bool = True) -> DiffusersTeacher:
        """Stay frozen. Raises TeacherError where it is asked to learn."""
        if requires_grad:
            raise TeacherError("a DiffusersTeacher is frozen; convert the checkpoint (worldline convert) to train it")
        return super().requires_grad_(False)

    def train(self, mode: bool = True) -> DiffusersTeacher:
        """Stay in evaluation mode: a trainer sets all roles to training alike."""
        return super().train(False)


def _dtype(transformer: Any) -> torch.dtype:
    """The weights' type; diffusers' own answer knows which parts it keeps in fp32."""
    found = getattr(transformer, "dtype", None)
    return found if isinstance(found, torch.dtype) else next(transformer.parameters()).dtype


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TeacherError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise TeacherError(f"{path} holds a {type(found).__name__}; expected an object")
    return found
