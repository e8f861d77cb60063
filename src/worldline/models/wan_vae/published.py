"""Wan's published autoencoders to a model directory of ours: a `vae/` folder of diffusers, or Wan's own file.

Tensors are the same in all of them, and keys differ by name alone. The statistics of the latents stand in diffusers'
config only; Wan keeps them in its code, so that a file of Wan's own must have the sizes of an autoencoder we know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldline.models.convert.errors import ConvertError, KeysError, NotACheckpointError, UnknownFamilyError, some
from worldline.models.convert.reading import open_file
from worldline.models.convert.tensors import Source, TensorInfo
from worldline.models.registry import load_state, save_model
from worldline.models.wan_vae import WAN_VAE_VARIANTS, WanVAE, WanVAEConfig
from worldline.models.wan_vae.names import MARK, original_name
from worldline.schema import WorldlineError

CLASS = "AutoencoderKLWan"


@dataclass(frozen=True)
class PublishedVAE:
    """An opened autoencoder of Wan's."""

    layout: str  # whose names it has: `diffusers` or `original Wan`
    config: WanVAEConfig
    source: Source
    group: str
    names: Mapping[str, str]  # our name -> the name in the file, of every tensor of ours

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Headers under the names in the file."""
        return self.source.groups[self.group]

    @property
    def variant(self) -> str | None:
        """The published autoencoder of this config."""
        return next((name for name, config in WAN_VAE_VARIANTS.items() if config == self.config), None)

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
        return _described(path).get("_class_name") == CLASS
    try:
        return any(MARK in infos for infos in open_file(path).groups.values())
    except (ConvertError, OSError, RecursionError):
        return False


def open_published(path: Path) -> PublishedVAE:
    """Open an autoencoder: headers alone. Raises ConvertErrors for files that are damaged, no checkpoint, or of sizes that
    nobody published, WorldlineError for a config that lacks something."""
    return _original(path) if path.is_file() else _diffusers(path)


def convert_published(path: Path, out: Path, licence: str | None = None, origin: str | None = None) -> WanVAE:
    """Write the autoencoder at `path` to `out`, a folder that does not exist yet, in fp32. Raises WorldlineError where a
    file is missing, damaged, or holds other weights than it should."""
    if out.exists():
        raise WorldlineError(f"{out} exists; choose a folder that does not, or delete it")
    found = open_published(path)
    if found.faults:
        raise KeysError(f"{path.name}: {found.faults}; these weights do not fit WanVAE, and nothing was written")
    with torch.device("meta"):
        model = WanVAE(found.config)
    weights = {ours: found.source.read(found.group, theirs).float() for ours, theirs in found.names.items()}
    load_state(model, weights, assign=True)
    save_model(model, out, {"licence": licence or "not stated in the file", "origin": origin or path.name})
    return model


def _diffusers(folder: Path) -> PublishedVAE:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise NotACheckpointError(f"{folder} has {len(files)} *.safetensors files; expected the one of an {CLASS}")
    try:
        config = WanVAEConfig.from_diffusers(_described(folder))
    except KeyError as error:
        raise WorldlineError(f"{folder / 'config.json'} lacks {error}; expected the config of an {CLASS}") from error
    return PublishedVAE("diffusers", config, open_file(files[0]), "", {key: key for key in _keys(config)})


def _original(path: Path) -> PublishedVAE:
    source = open_file(path)
    group = next((name for name, infos in source.groups.items() if MARK in infos), None)
    if group is None:
        raise UnknownFamilyError(f"{path.name} holds no Wan autoencoder; expected a tensor {MARK}")
    known = {(c.decoder_width * c.multipliers[-1], c.latent_channels): c for c in WAN_VAE_VARIANTS.values()}
    first = source.groups[group].get("decoder.conv1.weight")
    config = known.get(first.shape[:2]) if first is not None else None  # type: ignore[call-overload]
    if config is None:
        raise UnknownFamilyError(
            f"{path.name}: decoder.conv1.weight is {first and list(first.shape)}; expected {list(known)} to begin with, as "
            f"in {', '.join(WAN_VAE_VARIANTS)}: Wan's own files do not hold the statistics of their latents"
        )
    names = {key: original_name(key, config) for key in _keys(config)}
    return PublishedVAE("original Wan", config, source, group, names)


def _keys(config: WanVAEConfig) -> list[str]:
    with torch.device("meta"):
        return list(WanVAE(config).state_dict())


def _described(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
