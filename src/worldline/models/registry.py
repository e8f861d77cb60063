"""Models on disk: a directory with config.json, model.safetensors and (optionally) card.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldline.models.backbone import Backbone
from worldline.models.codec import Codec
from worldline.models.hunyuan15 import HUNYUAN_VARIANTS, HunyuanConfig, HunyuanModel
from worldline.models.hunyuan15_vae import HunyuanVAE, HunyuanVAEConfig
from worldline.models.nano_vae import NanoVAE, NanoVAEConfig
from worldline.models.tiny_vae import TinyVAE, TinyVAEConfig
from worldline.models.wan import WAN_VARIANTS, WanConfig, WanModel
from worldline.models.wan_vae import WanVAE, WanVAEConfig
from worldline.nn.quant import description, quantised_tensors, with_layers
from worldline.schema import WorldlineError

BackboneConfig = WanConfig | HunyuanConfig
VARIANTS: dict[str, BackboneConfig] = {**WAN_VARIANTS, **HUNYUAN_VARIANTS}
KINDS: dict[str, tuple[type, type]] = {
    "wan": (WanModel, WanConfig),
    "hunyuan15": (HunyuanModel, HunyuanConfig),
    "nano_vae": (NanoVAE, NanoVAEConfig),
    "wan_vae": (WanVAE, WanVAEConfig),
    "hunyuan15_vae": (HunyuanVAE, HunyuanVAEConfig),
    "tiny_vae": (TinyVAE, TinyVAEConfig),
}


def kind_of(model: nn.Module) -> str:
    """The registered kind of a model."""
    for kind, (cls, _) in KINDS.items():
        if isinstance(model, cls):
            return kind
    raise WorldlineError(f"{type(model).__name__} is no registered model; expected one of {sorted(KINDS)}")


def save_model(
    model: Backbone | Codec,
    directory: str | Path,
    card: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write weights (cast to `dtype` if given) and config; the card says where the weights come from. Raises
    WorldlineError on a model that was laid out for inference: its weights have lost their names."""
    if getattr(model, "frozen", False):
        raise WorldlineError(
            "a frozen model cannot be saved; expected one whose freeze() was not called: load it again"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    eight = quantised_tensors(model)
    state = {
        k: v.detach()
        .to(dtype if dtype is not None and v.is_floating_point() and k not in eight else v.dtype)
        .contiguous()
        for k, v in model.state_dict().items()
    }
    tmp = directory / "model.safetensors.tmp"
    save_file(state, tmp)
    tmp.replace(directory / "model.safetensors")
    config = {"kind": kind_of(model), "config": dataclasses.asdict(model.config)}
    if (quantised := description(model)) is not None:
        config["quantised"] = quantised
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if card is not None:
        (directory / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return directory


def build_model(kind: str, config: dict[str, Any]) -> Backbone | Codec:
    """A freshly initialised model from a kind and its config as data. Unknown keys are errors."""
    if kind not in KINDS:
        raise WorldlineError(f"model kind {kind!r}; expected one of {sorted(KINDS)}")
    cls, config_cls = KINDS[kind]
    fields = {f.name for f in dataclasses.fields(config_cls)}
    if unknown := sorted(set(config) - fields):
        raise WorldlineError(f"{kind} config has unknown keys {unknown}; expected some of {sorted(fields)}")
    return cls(config_cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}))


def build_backbone(config: BackboneConfig) -> Backbone:
    """A freshly initialised transformer of these sizes, whichever family they are of."""
    for cls, config_cls in KINDS.values():
        if type(config) is config_cls:
            model: Backbone = cls(config)
            return model
    raise WorldlineError(f"{type(config).__name__} is no config of a transformer; expected WanConfig or HunyuanConfig")


def variant(name: str, **changes: Any) -> BackboneConfig:
    """A named backbone's sizes, with changes."""
    if name not in VARIANTS:
        raise WorldlineError(f"model variant {name!r}; expected one of {sorted(VARIANTS)}")
    return dataclasses.replace(VARIANTS[name], **changes)


def load_state(
    model: nn.Module, state: dict[str, Tensor], *, may_miss: tuple[str, ...] = (), assign: bool = False
) -> list[str]:
    """Load weights strictly; only keys containing one of `may_miss` may be absent. Returns the absent ones. `assign`: the
    model takes the tensors themselves, as one on the meta device must."""
    own = model.state_dict()
    if misshapen := [k for k, v in state.items() if k in own and own[k].shape != v.shape]:
        key = misshapen[0]
        raise WorldlineError(
            f"weights do not fit {type(model).__name__}: {len(misshapen)} of another shape, such as {key} "
            f"{tuple(state[key].shape)}, expected {tuple(own[key].shape)}; check that the config belongs to these weights"
        )
    missing, unexpected = model.load_state_dict(state, strict=False, assign=assign)
    bad = [k for k in missing if not any(part in k for part in may_miss)]
    if bad or unexpected:
        raise WorldlineError(
            f"weights do not fit {type(model).__name__}: {len(bad)} missing {bad[:5]}, {len(unexpected)} unexpected "
            f"{list(unexpected)[:5]}; check that the config belongs to these weights"
        )
    return list(missing)


def load_model(directory: str | Path) -> Backbone | Codec:
    """The model of a directory in fp32 (8-bit layers as they are), eval mode. Raises WorldlineError where a file is missing
    or does not fit."""
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise WorldlineError(f"{directory} has no {name}; expected a model directory written by save_model")
    described = json.loads((directory / "config.json").read_text())
    model = build_model(described["kind"], described["config"])
    if "quantised" in described:
        with_layers(model, described["quantised"])
    eight = quantised_tensors(model)
    weights = load_file(directory / "model.safetensors")
    load_state(model, {k: v if k in eight else v.float() for k, v in weights.items()})
    return model.eval()


def weights_hash(directory: str | Path) -> str:
    """First 12 hex digits of the sha256 of the weights file."""
    digest = hashlib.sha256((Path(directory) / "model.safetensors").read_bytes())
    return digest.hexdigest()[:12]


def load_codec(directory: str | Path) -> Codec:
    """The codec of a directory. Raises WorldlineError where it holds another kind of model."""
    found = load_model(directory)
    if not isinstance(found, Codec):
        raise WorldlineError(f"{directory} holds a {type(found).__name__}; expected a codec")
    return found
