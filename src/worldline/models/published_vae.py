"""Published autoencoders to a model directory of ours: Wan's and HunyuanVideo-1.5's as a `vae/` folder of diffusers, Wan's own
file, and TAEHV's.

Tensors are ours in all of them, and keys differ by name alone. The statistics of the latents stand in diffusers' config
only; Wan keeps them in its code, so that a file of Wan's own must have the sizes of an autoencoder we know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldline.models.codec import Codec
from worldline.models.convert.errors import ConvertError, KeysError, NotACheckpointError, UnknownFamilyError, some
from worldline.models.convert.hunyuan import LICENCE as HUNYUAN_LICENCE
from worldline.models.convert.reading import described, open_file
from worldline.models.convert.tensors import Source, TensorInfo
from worldline.models.hunyuan15_vae import HunyuanVAE, HunyuanVAEConfig
from worldline.models.registry import load_state, save_model
from worldline.models.tiny_vae import TINY_VAE_VARIANTS, TinyVAE, TinyVAEConfig
from worldline.models.wan_vae import WAN_VAE_VARIANTS, WanVAE, WanVAEConfig
from worldline.models.wan_vae.names import MARK, original_name
from worldline.schema import WorldlineError

Config = WanVAEConfig | TinyVAEConfig | HunyuanVAEConfig

CLASSES: dict[str, Callable[[Mapping[str, Any]], Config]] = {
    "AutoencoderKLWan": WanVAEConfig.from_diffusers,
    "AutoencoderKLHunyuanVideo15": HunyuanVAEConfig.from_diffusers,
}
TINY_MARK = "decoder.3.conv.4.weight"  # of TAEHV's first memory block


@dataclass(frozen=True)
class PublishedVAE:
    """An opened autoencoder."""

    layout: str  # whose names it has: `diffusers`, `original Wan` or `TAEHV`
    config: Config
    source: Source
    group: str
    names: Mapping[str, str]  # our name -> the name in the file, of every tensor of ours
    licence: str | None = None  # as stated beside the file

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Headers under the names in the file."""
        return self.source.groups[self.group]

    @property
    def variant(self) -> str | None:
        """The published autoencoder of this config."""
        known: dict[str, Any] = {**WAN_VAE_VARIANTS, **TINY_VAE_VARIANTS, "hunyuan15": HunyuanVAEConfig()}
        return next((name for name, config in known.items() if config == self.config), None)

    @property
    def title(self) -> str:
        """What kind it is."""
        named = {WanVAEConfig: "Wan autoencoder", HunyuanVAEConfig: "HunyuanVideo-1.5 autoencoder"}
        return named.get(type(self.config), "tiny autoencoder")

    @property
    def faults(self) -> str:
        """What stands against a conversion, in one line; empty if nothing does."""
        unknown = self.infos.keys() - set(self.names.values())
        missing = set(self.names.values()) - self.infos.keys()
        kinds = ((unknown, "unexplained tensors"), (missing, "missing tensors"))
        return ", ".join(f"{len(keys)} {word} ({some(keys)})" for keys, word in kinds if keys)


def is_published(path: Path) -> bool:
    """Whether a path is such a folder or file. False for what cannot be read."""
    if not path.is_file():
        return _described(path).get("_class_name") in CLASSES
    try:
        return any(MARK in infos or TINY_MARK in infos for infos in open_file(path).groups.values())
    except (ConvertError, OSError, RecursionError):
        return False


def open_published(path: Path) -> PublishedVAE:
    """Open an autoencoder: headers alone. Raises ConvertErrors for files that are damaged, no checkpoint, or of sizes that
    nobody published, WorldlineError for a config that lacks something."""
    return _original(path) if path.is_file() else _diffusers(path)


def convert_published(path: Path, out: Path, licence: str | None = None, origin: str | None = None) -> Codec:
    """Write the autoencoder at `path` to `out`, a folder that does not exist yet, in fp32. Raises WorldlineError where a
    file is missing, damaged, or holds other weights than it should."""
    if out.exists():
        raise WorldlineError(f"{out} exists; choose a folder that does not, or delete it")
    found = open_published(path)
    if found.faults:
        fitting = type(_hollow(found.config)).__name__
        raise KeysError(f"{path.name}: {found.faults}; these weights do not fit {fitting}, and nothing was written")
    model = _hollow(found.config)
    weights = {ours: found.source.read(found.group, theirs).float() for ours, theirs in found.names.items()}
    load_state(model, weights, assign=True)
    save_model(
        model, out, {"licence": licence or found.licence or "not stated in the file", "origin": origin or path.name}
    )
    return model


def _diffusers(folder: Path) -> PublishedVAE:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise NotACheckpointError(f"{folder} has {len(files)} *.safetensors files; expected the one of an autoencoder")
    said = _described(folder)
    name = said["_class_name"]
    try:
        config = CLASSES[name](said)
    except KeyError as error:
        raise WorldlineError(f"{folder / 'config.json'} lacks {error}; expected the config of an {name}") from error
    names = {key: key for key in _hollow(config).state_dict()}
    licence = described(files[0])[2] or (HUNYUAN_LICENCE if isinstance(config, HunyuanVAEConfig) else None)
    return PublishedVAE("diffusers", config, open_file(files[0]), "", names, licence)


def _original(path: Path) -> PublishedVAE:
    source = open_file(path)
    group = next((name for name, infos in source.groups.items() if MARK in infos or TINY_MARK in infos), None)
    if group is None:
        raise UnknownFamilyError(f"{path.name} holds no autoencoder of Wan's latents; expected a tensor {MARK}")
    if MARK not in source.groups[group]:
        return _tiny(path, source, group)
    known: dict[tuple[int, ...], WanVAEConfig] = {
        (c.decoder_width * c.multipliers[-1], c.latent_channels): c for c in WAN_VAE_VARIANTS.values()
    }
    first = source.groups[group].get("decoder.conv1.weight")
    config = known.get(first.shape[:2]) if first is not None else None
    if config is None:
        raise UnknownFamilyError(
            f"{path.name}: decoder.conv1.weight is {first and list(first.shape)}; expected {list(known)} to begin with, as "
            f"in {', '.join(WAN_VAE_VARIANTS)}: Wan's own files do not hold the statistics of their latents"
        )
    names = {key: original_name(key, config) for key in _hollow(config).state_dict()}
    return PublishedVAE("original Wan", config, source, group, names, described(path)[2])


def _tiny(path: Path, source: Source, group: str) -> PublishedVAE:
    first = source.groups[group].get("decoder.1.weight")
    known = {config.latent_channels: config for config in TINY_VAE_VARIANTS.values()}
    config = known.get(first.shape[1]) if first is not None and len(first.shape) > 1 else None
    if config is None:
        raise UnknownFamilyError(
            f"{path.name}: decoder.1.weight is {first and list(first.shape)}; expected {list(known)} latent channels, as in "
            f"{', '.join(TINY_VAE_VARIANTS)}"
        )
    names = {key: key for key in _hollow(config).state_dict()}
    return PublishedVAE("TAEHV", config, source, group, names, described(path)[2])


def _hollow(config: Config) -> WanVAE | TinyVAE | HunyuanVAE:
    with torch.device("meta"):
        if isinstance(config, HunyuanVAEConfig):
            return HunyuanVAE(config)
        return WanVAE(config) if isinstance(config, WanVAEConfig) else TinyVAE(config)


def _described(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
