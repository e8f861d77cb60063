"""Adapters as peft and diffusers write them: where a file keeps the scale of its updates, and a folder that peft reads.

Their tensors do not tell the scale. It stands beside them: in the header that diffusers writes, in peft's
`adapter_config.json`, or in `.alpha` tensors. A reader that passes over it gets an adapter that is too strong or too weak.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worldline.models.lora import LoRAError, lora_state

HEADER = "lora_adapter_metadata"  # diffusers' entry in a safetensors header
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # a folder of peft's
_DOWN = re.compile(r"(.+)\.lora_A(?:\.[^.]+)?\.weight")


def read_adapter(path: str | Path) -> dict[str, Tensor]:
    """The adapter of a safetensors file, or of peft's folder, for `load_lora`: its scale is added as `.alpha` tensors.

    Raises LoRAError where there is none, it cannot be read, or it is more than LoRA (DoRA).
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    try:
        with safe_open(str(file), "pt") as found:
            state = {key: found.get_tensor(key) for key in found.keys()}  # noqa: SIM118, not a dict
            said = json.loads((found.metadata() or {}).get(HEADER, "{}"))
        if not said and file.name == WEIGHTS and (file.parent / CONFIG).is_file():
            said = json.loads((file.parent / CONFIG).read_text())
    except (SafetensorError, OSError, ValueError) as error:
        raise LoRAError(f"{file} cannot be read as an adapter ({error}); expected safetensors") from error
    # A pipeline's file states its transformer's settings under that name, beside those of other components.
    said = {key.removeprefix("transformer."): value for key, value in said.items()}
    if said.get("use_dora"):
        raise LoRAError(f"{file} is DoRA, of which LoRA is a part; expected plain LoRA: merge it where it was trained")
    if "lora_alpha" in said:
        for key, down in list(state.items()):
            if match := _DOWN.fullmatch(key):
                state.setdefault(f"{match[1]}.alpha", torch.tensor(_alpha(said, match[1], len(down))))
    return state


def _alpha(said: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha of one layer such that alpha / rank is the scale that was trained with."""
    patterns = said.get("alpha_pattern") or {}
    alpha = next((a for p, a in patterns.items() if re.fullmatch(rf"(?:.*\.)?{p}", layer)), said["lora_alpha"])
    return float(alpha) * (rank**0.5 if said.get("use_rslora") else 1.0)


def write_peft(model: nn.Module, directory: str | Path, *, adapter: str = "default") -> Path:
    """Write an adapter as a folder that `peft.PeftModel.from_pretrained(model, directory)` reads. Scales are folded in."""
    state = {key.removeprefix("transformer."): value for key, value in lora_state(model, adapter=adapter).items()}
    ranks = {m[1]: len(value) for key, value in state.items() if (m := _DOWN.fullmatch(key))}
    rank = max(ranks.values())
    other = {layer: r for layer, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{key}": value.contiguous() for key, value in state.items()}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return directory
