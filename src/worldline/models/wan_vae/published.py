"""Wan's autoencoders as diffusers publishes them (a `vae/` folder) to a model directory of ours; keys are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from worldline.models.registry import load_state, save_model
from worldline.models.wan_vae import WanVAE, WanVAEConfig
from worldline.schema import WorldlineError

CLASS = "AutoencoderKLWan"


def is_published(folder: Path) -> bool:
    """Whether a folder says that it holds one."""
    return _described(folder).get("_class_name") == CLASS


def convert_published(folder: Path, out: Path, licence: str | None = None, origin: str | None = None) -> WanVAE:
    """Write the autoencoder of `folder` to `out`, a folder that does not exist yet. Raises WorldlineError where a file is
    missing, damaged, or holds other weights than its config says."""
    if out.exists():
        raise WorldlineError(f"{out} exists; choose a folder that does not, or delete it")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise WorldlineError(f"{folder} has {len(files)} *.safetensors files; expected the one of an {CLASS}")
    try:
        config = WanVAEConfig.from_diffusers(_described(folder))
        state = load_file(files[0])
    except KeyError as error:
        raise WorldlineError(f"{folder / 'config.json'} lacks {error}; expected the config of an {CLASS}") from error
    except (SafetensorError, OSError) as error:
        raise WorldlineError(f"{files[0]} cannot be read ({error}); fetch it again") from error
    model = WanVAE(config)
    load_state(model, {key: value.float() for key, value in state.items()})
    card = {"licence": licence or "not stated in the file", "origin": origin or folder.name}
    save_model(model, out, card)
    return model


def _described(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
