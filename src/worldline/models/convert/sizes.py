"""A model's config from the shapes of its tensors, and the shapes that a config asks for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch.overrides import TorchFunctionMode

from worldline.models.convert import keymaps
from worldline.models.convert.errors import CorruptFileError, InDoubtError, KeysError
from worldline.models.convert.published import PUBLISHED
from worldline.models.convert.tensors import Source, TensorInfo
from worldline.models.wan import WAN_VARIANTS, CameraMode, WanConfig, WanModel
from worldline.schema import WorldlineError

CONFIG_KEY = "worldline"  # our metadata entry in the files that we write
MAX_LAYERS = 1000  # a false number in a config must not have us build a model without end
CAMERAS = get_args(CameraMode)
CAMERA_OF_STEM: dict[str, CameraMode] = {
    keymaps.PROPE: "branch",
    "ray_embedding": "plucker",
    "blocks.attn3.to_q": "cross",
}


class _NoMaths(TorchFunctionMode):
    """Random draws and arithmetic leave meta tensors as they are: doing them would load the compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if getattr(func, "__name__", "") in ("__truediv__", "div", "normal_", "uniform_", "fill_", "zero_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def expected_shapes(config: WanConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of our model, made without memory."""
    with torch.device("meta"), _NoMaths():
        return {k: tuple(v.shape) for k, v in WanModel(config).state_dict().items()}


def config_of(
    infos: Mapping[str, TensorInfo], source: Source, config_json: Mapping[str, Any], num_heads: int | None, file: str
) -> tuple[WanConfig, bool]:
    """Sizes from shapes; heads, text length and the fused camera from what is written beside the weights.

    infos: headers under our names. Also says whether anything told the number of heads (else it is 1). Raises KeysError
    where the sizes do not show, CorruptFileError where what is written cannot be.
    """
    try:
        dim, in_channels, *patch = infos["patch_embedding.weight"].shape
        text = infos["condition_embedder.text_embedder.linear_1.weight"].shape[1]
        freq = infos["condition_embedder.time_embedder.linear_1.weight"].shape[1]
        ffn = infos["blocks.0.ffn.net.0.proj.weight"].shape[0]
        out = infos["proj_out.weight"].shape[0]
        t, h, w = patch
    except (KeyError, IndexError, ValueError) as error:
        raise KeysError(
            f"{file}: the sizes of the model cannot be told ({error}); expected patch embedding, embedders, first block "
            "and head; is it one shard of several?"
        ) from error
    if min(dim, in_channels, text, freq, ffn, out, t, h, w) < 1:
        raise KeysError(f"{file}: a size of the model is zero; expected the weights themselves, not placeholders")
    counted = len({k.split(".")[1] for k in infos if k.startswith("blocks.")})
    stated = _stated(source, config_json, file)
    twin = next((c for c in PUBLISHED.values() if (c.dim, c.ffn_dim) == (dim, ffn)), None)
    heads = num_heads or stated.get("num_heads") or (twin.num_heads if twin else None)
    if heads is not None and heads < 1:
        raise InDoubtError(f"{file}: {heads} attention heads; expected a number from 1 that divides the width {dim}")
    seen = {
        "dim": dim,
        "ffn_dim": ffn,
        # What is said, or is usual at this width, outranks the count: blocks that are absent must show as missing.
        "num_layers": stated.get("num_layers") or max(counted, twin.num_layers if twin else 0),
        "in_channels": in_channels,
        "out_channels": out // max(1, t * h * w),
        "patch_size": (t, h, w),
        "text_dim": text,
        "freq_dim": freq,
    }
    for stem, camera in CAMERA_OF_STEM.items():
        if any(keymaps.split(k)[1] == stem for k in infos):
            seen["camera"] = camera
    if any(keymaps.role(k) == "motion" for k in infos):
        seen["motion"] = True
    action = infos.get("condition_embedder.action_embedder.linear_1.weight")
    if action is not None:
        seen["actions"] = action.shape[-1] if action.shape else 0
    text_len = twin.text_len if twin else 512
    try:
        return WanConfig(**{"text_len": text_len, **stated, **seen, "num_heads": heads or 1}), heads is not None
    except WorldlineError as error:
        raise KeysError(f"{file}: {error}") from error


def _stated(source: Source, config_json: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What metadata (ours), or config.json (ours, diffusers' or Wan's) says; what shapes show outranks it."""
    if CONFIG_KEY in source.metadata or config_json.get("kind") == "wan":
        said: Any = config_json.get("config")
        if CONFIG_KEY in source.metadata:
            try:
                said = json.loads(source.metadata[CONFIG_KEY])
            except (TypeError, ValueError) as error:
                raise CorruptFileError(f"{file}: its {CONFIG_KEY} metadata is no JSON ({error})") from error
    else:
        heads = config_json.get("num_attention_heads", config_json.get("num_heads"))
        said = {"num_heads": heads, **{key: config_json.get(key) for key in ("num_layers", "text_len", "eps")}}
        said = {k: v for k, v in said.items() if v is not None}
    if not isinstance(said, dict):
        raise CorruptFileError(f"{file}: its config is {said!r}; expected a table")
    said = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
    model = WAN_VARIANTS["nano"]
    for key, value in said.items():
        kind = type(getattr(model, key, None))
        wrong = not isinstance(value, kind) or (isinstance(value, int) and value < 0)
        wrong |= key == "num_layers" and value > MAX_LAYERS
        if wrong or (key == "camera" and value not in CAMERAS):
            raise CorruptFileError(f"{file}: its config says {key} {value!r}; expected {kind.__name__} as in WanConfig")
    return said


def variant_of(config: WanConfig) -> str | None:
    """The published model of these sizes, however it is steered."""
    plain = dataclasses.replace(config, camera="none", motion=False, actions=0, camera_share=0.5)
    return next((name for name, sizes in PUBLISHED.items() if sizes == plain), None)
