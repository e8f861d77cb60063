"""Which model a file holds: the naming that explains its keys, the sizes in its shapes, and every key left unexplained."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.overrides import TorchFunctionMode

from worldline.models.convert import keymaps
from worldline.models.convert.errors import CorruptFileError, InDoubtError, KeysError, UnknownFamilyError, some
from worldline.models.convert.keymaps import DIFFUSERS, NAMINGS, OURS, WAN, WORLDPLAY, Naming
from worldline.models.convert.published import PUBLISHED, licence_of
from worldline.models.convert.reading import described, locate, open_source
from worldline.models.convert.report import CheckpointReport, WeightSet
from worldline.models.convert.tensors import Source, TensorInfo
from worldline.models.wan import WAN_VARIANTS, CameraMode, WanConfig, WanModel
from worldline.schema import WorldlineError

Which = Literal["ema", "raw"]
EMA_SETS = ("generator_ema", "model_ema", "ema")
RAW_SETS = ("generator", "model", "state_dict", "module", "")
OTHER_NETS = {"critic": "critic", "fake_score": "critic", "real_score": "teacher", "generator_lora": "LoRA"}
LORA_WORDS = ("lora_A", "lora_B", "lora_down", "lora_up")
CAMERAS = get_args(CameraMode)
CAMERA_OF_STEM: dict[str, CameraMode] = {
    keymaps.PROPE: "branch",
    "ray_embedding": "plucker",
    "blocks.attn3.to_q": "cross",
}
CONFIG_KEY = "worldline"  # our metadata entry in exported files

# Words in the keys of families that we know by sight and do not convert.
SIGHTED: dict[str, tuple[str, ...]] = {
    "HunyuanVideo-1.5": ("double_blocks", "img_in", "txt_in", "byt5_in", "vision_in", "final_layer"),
    "HunyuanVideo-1.5 (diffusers)": ("x_embedder", "context_embedder", "transformer_blocks", "image_embedder"),
    "LTX": ("patchify_proj", "adaln_single", "transformer_blocks", "audio_patchify_proj", "proj_in"),
    "a video VAE": ("encoder", "decoder", "quant_conv", "post_quant_conv", "conv1", "conv2"),
    "a UMT5 text encoder": ("token_embedding", "shared", "encoder.block", "encoder.final_layer_norm", "pos_embedding"),
    "a worldline codec": ("encoder", "decoder", "mean", "std"),
}


@dataclass(frozen=True)
class Recognised:
    """A checkpoint with its explanation: our name -> the name in the file, within one set of weights."""

    source: Source
    group: str
    names: Mapping[str, str]
    card: Mapping[str, Any]
    report: CheckpointReport

    def info(self, ours: str) -> TensorInfo:
        """Header of a tensor under our name."""
        return self.source.groups[self.group][self.names[ours]]

    def read(self, ours: str) -> torch.Tensor:
        """A tensor under our name."""
        return self.source.read(self.group, self.names[ours])


def inspect(path: str | Path, *, which: Which = "ema", num_heads: int | None = None) -> CheckpointReport:
    """What a checkpoint is, from headers alone. `which` says which set to look at where a file holds EMA and raw weights.

    Raises NotACheckpointError, CorruptFileError, UnsafePickleError, UnknownFamilyError (with the nearest candidates),
    InDoubtError where several sets qualify, KeysError where two names mean the same tensor.
    """
    return recognise(path, which=which, num_heads=num_heads).report


def recognise(path: str | Path, *, which: Which = "ema", num_heads: int | None = None) -> Recognised:
    """Open and explain a checkpoint. Errors as `inspect`."""
    weights = locate(Path(path))
    source = open_source(weights)
    config_json, card, stated_licence = described(weights)
    group, naming = _choose(source, which, weights.name)
    infos = source.groups[group]
    names, unknown = _explain(infos, naming, weights.name)
    config, heads_known = _config({k: infos[v] for k, v in names.items()}, source, config_json, num_heads, weights.name)
    expected = expected_shapes(config)
    extra = {k for k in names if keymaps.role(k) == "image"}  # known, but no part of our model
    unknown += [names[k] for k in names if k not in expected and k not in extra]
    names = {k: names[k] for k in (*expected, *sorted(extra)) if k in names}  # the model's order, whatever the file's
    wrong = [
        f"{k}: {list(infos[v].shape)}, expected {list(expected[k])}"
        for k, v in names.items()
        if k in expected and infos[v].shape != expected[k]
    ]
    roles = Counter(str(keymaps.role(k)) for k in names)
    layout, title = _layout(naming, group, roles, config_json)
    report = CheckpointReport(
        file=f"{weights.parent.name}/{weights.name}".lstrip("/"),
        container=source.container,
        family="Wan",
        layout=title,
        variant=_variant(config),
        config=config,
        heads_known=heads_known,
        sets=tuple(_set(name, tensors, name == group) for name, tensors in source.groups.items()),
        chosen=group,
        tensors=len(infos),
        parameters=sum(i.count for i in infos.values()),
        nbytes=sum(i.nbytes for i in infos.values()),
        dtypes=dict(Counter(i.dtype for i in infos.values())),
        roles=dict(roles),
        wrappers=tuple(sorted({word for key in infos for word in keymaps.wrappers(key)})),
        unknown=tuple(sorted(unknown)),
        missing=tuple(sorted((set(expected) | _image_keys(extra, config.num_layers)) - set(names))),
        misshapen=tuple(sorted(wrong)),
        licence=stated_licence or licence_of(layout, "camera" in roles),
        extras=source.extras,
    )
    return Recognised(source, group, names, card, report)


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


def _image_keys(found: Collection[str], layers: int) -> set[str]:
    """Every image key that a complete model has, if any block has it."""
    parts = [keymaps.split(k) for k in found]
    return {
        keymaps.join(f"blocks.{n}." if block else "", stem, leaf) for block, stem, leaf in parts for n in range(layers)
    }


def _explain(infos: Collection[str], naming: Naming, file: str) -> tuple[dict[str, str], list[str]]:
    """Our name -> key in the file, and the keys that the naming does not know."""
    names: dict[str, str] = {}
    unknown = []
    for key in infos:
        ours = naming.ours(keymaps.unwrap(key))
        if ours is None:
            unknown.append(key)
        elif ours in names:
            raise KeysError(
                f"{file}: {names[ours]} and {key} both mean {ours}; expected one; save it from the bare model"
            )
        else:
            names[ours] = key
    return names, unknown


def _share(infos: Collection[str], naming: Naming) -> float:
    """How much of a set a naming explains; a set without a patch embedding is no video transformer."""
    bare = {keymaps.unwrap(k) for k in infos}
    if not bare or "patch_embedding.weight" not in bare:
        return 0.0
    return sum(naming.ours(k) is not None for k in bare) / len(bare)


def _choose(source: Source, which: Which, file: str) -> tuple[str, Naming]:
    """The set of weights to look at, and its naming."""
    if not source.groups:
        raise UnknownFamilyError(f"{file} holds no tensors ({some(source.extras) or 'it is empty'}); expected a model")
    best = {group: max(NAMINGS, key=lambda n: _share(infos, n)) for group, infos in source.groups.items()}
    fit = [g for g, naming in best.items() if _share(source.groups[g], naming) > 0.5 and g not in OTHER_NETS]
    if not fit:
        raise UnknownFamilyError(_nearest(source, file))
    ema, raw = [g for g in EMA_SETS if g in fit], [g for g in RAW_SETS if g in fit]
    order = [*ema, *raw] if which == "ema" else raw
    if not order:
        rest = [g for g in fit if g not in EMA_SETS]
        if len(rest) != 1:
            raise InDoubtError(
                f"{file} holds no {which} weights, only {some(fit)}; expected one of {some(EMA_SETS + RAW_SETS)}"
            )
        order = rest
    return order[0], best[order[0]]


def _nearest(source: Source, file: str) -> str:
    """Why a file is no Wan, and what it resembles."""
    keys = [keymaps.unwrap(k) for infos in source.groups.values() for k in infos]
    if any(word in key for key in keys for word in LORA_WORDS):
        return f"{file} is a LoRA: changes to a model, not a model; merge it into its base and convert the result"
    scores = {f"Wan ({n.title})": _known(keys, n.naming) for n in _titles()}
    for family, words in SIGHTED.items():
        hits = sum(any(k == w or k.startswith(w + ".") for k in keys) for w in words)
        scores[family] = hits / len(words)
    near = [f"{name} {share:.0%}" for name, share in sorted(scores.items(), key=lambda s: -s[1])[:3] if share > 0]
    likeness = f"nearest: {', '.join(near)}" if near else f"nothing resembles its keys ({some(keys, 3)})"
    return f"{file} is no Wan transformer, the family that is converted; {likeness}"


def _known(keys: list[str], naming: Naming) -> float:
    return sum(naming.ours(k) is not None for k in keys) / len(keys)


def _titles() -> list[keymaps.Layout]:
    return [keymaps.LAYOUTS[name] for name in ("diffusers", "wan", "worldplay")]


def _config(
    infos: Mapping[str, TensorInfo], source: Source, config_json: Mapping[str, Any], num_heads: int | None, file: str
) -> tuple[WanConfig, bool]:
    """Sizes from shapes; heads, text length and the fused camera from whatever is written beside the weights."""
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
    layers = len({k.split(".")[1] for k in infos if k.startswith("blocks.")})
    stated = _stated(source, config_json, file)
    twin = next((c for c in PUBLISHED.values() if (c.dim, c.ffn_dim) == (dim, ffn)), None)
    heads = num_heads or stated.get("num_heads") or (twin.num_heads if twin else None)
    action = infos.get("condition_embedder.action_embedder.linear_1.weight")
    seen = {
        "dim": dim,
        "ffn_dim": ffn,
        "num_layers": layers,
        "in_channels": in_channels,
        "out_channels": out // max(1, t * h * w),
        "patch_size": (t, h, w),
        "text_dim": text,
        "freq_dim": freq,
        "motion": any(keymaps.role(k) == "motion" for k in infos),
        "actions": action.shape[-1] if action is not None and action.shape else 0,
    }
    for stem, camera in CAMERA_OF_STEM.items():
        if any(keymaps.split(k)[1] == stem for k in infos):
            seen["camera"] = camera
    text_len = twin.text_len if twin else 512
    try:
        return WanConfig(**{"text_len": text_len, **stated, **seen, "num_heads": heads or 1}), heads is not None
    except WorldlineError as error:
        raise KeysError(f"{file}: {error}") from error


def _stated(source: Source, config_json: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What metadata (ours), or config.json (ours, diffusers' or Wan's) says; shapes outrank it."""
    if CONFIG_KEY in source.metadata or config_json.get("kind") == "wan":
        said: Any = config_json.get("config")
        if CONFIG_KEY in source.metadata:
            try:
                said = json.loads(source.metadata[CONFIG_KEY])
            except (TypeError, ValueError) as error:
                raise CorruptFileError(f"{file}: its {CONFIG_KEY} metadata is no JSON ({error})") from error
    else:
        heads = config_json.get("num_attention_heads", config_json.get("num_heads"))
        said = {"num_heads": heads, "text_len": config_json.get("text_len"), "eps": config_json.get("eps")}
        said = {k: v for k, v in said.items() if v is not None}
    if not isinstance(said, dict):
        raise CorruptFileError(f"{file}: its config is {said!r}; expected a table")
    said = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
    model = WAN_VARIANTS["nano"]
    for key, value in said.items():
        kind = type(getattr(model, key, None))
        wrong = not isinstance(value, kind) or (isinstance(value, int) and value < 0)
        if wrong or (key == "camera" and value not in CAMERAS):
            raise CorruptFileError(f"{file}: its config says {key} {value!r}; expected {kind.__name__} as in WanConfig")
    return said


def _variant(config: WanConfig) -> str | None:
    plain = dataclasses.replace(config, camera="none", motion=False, actions=0, camera_share=0.5)
    return next((name for name, sizes in PUBLISHED.items() if sizes == plain), None)


def _layout(naming: Naming, group: str, roles: Counter[str], config_json: Mapping[str, Any]) -> tuple[str, str]:
    """Layout id (for the licence) and its title."""
    if naming is WORLDPLAY:
        return "worldplay", keymaps.LAYOUTS["worldplay"].title
    if naming is OURS or config_json.get("kind") == "wan":
        return "worldline", "worldline"
    if naming is DIFFUSERS:
        return "diffusers", "diffusers"
    assert naming is WAN
    if "camera" in roles:
        return "minwm", "minWM" if group.startswith("generator") else keymaps.LAYOUTS["minwm-v0.2"].title
    if group.startswith("generator"):
        return "self-forcing", keymaps.LAYOUTS["self-forcing"].title
    return "wan", keymaps.LAYOUTS["wan"].title


def _set(name: str, infos: Mapping[str, TensorInfo], chosen: bool) -> WeightSet:
    weights = chosen or max(_share(infos, naming) for naming in NAMINGS) > 0.5
    if any(word in key for key in infos for word in LORA_WORDS):
        what = "LoRA"
    elif name in OTHER_NETS:
        what = OTHER_NETS[name]
    elif not weights:
        what = "not weights of this family"
    else:
        what = "EMA weights" if name in EMA_SETS else "weights"
    return WeightSet(name, len(infos), sum(i.nbytes for i in infos.values()), what)
