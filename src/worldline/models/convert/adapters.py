"""LoRA files: what an adapter is and which model it changes, and merging it into a checkpoint tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.models.convert import keymaps
from worldline.models.convert.detect import recognise
from worldline.models.convert.errors import KeysError
from worldline.models.convert.export import Merge, Progress, To, convert
from worldline.models.convert.families import LORA_WORDS
from worldline.models.convert.keymaps import WAN
from worldline.models.convert.published import PUBLISHED, UNSAID
from worldline.models.convert.reading import described, open_file
from worldline.models.convert.report import CheckpointReport
from worldline.models.convert.safetensors_file import looks_like_safetensors
from worldline.models.convert.sizes import expected_shapes
from worldline.models.lora import LORA_KEY, LORA_PARTS, LoRAError, updates_of
from worldline.models.lora_file import WEIGHTS, read_adapter
from worldline.models.registry import build_backbone

FILES = (WEIGHTS, "pytorch_lora_weights.safetensors", "adapter.safetensors")  # of peft, of diffusers, ours


@dataclass(frozen=True)
class AdapterReport:
    """What a LoRA file is. Keys in `unknown` stand as in the file."""

    file: str
    made_by: str
    """The project whose names it has."""
    layers: int
    blocks: int
    ranks: dict[int, int]
    """Layers by rank."""
    parts: dict[str, int]
    """Layers by what they are, such as attn1.to_q."""
    parameters: int
    dtypes: dict[str, int]
    scale: str
    """Where the strength of its updates stands."""
    fits: tuple[str, ...]
    """Published models whose layers have these sizes."""
    unknown: tuple[str, ...]
    licence: str

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def find_adapter(path: str | Path) -> Path | None:
    """The safetensors file that a path means, where most of its tensors are LoRA's; None where it is anything else."""
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).is_file()), path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if not looks_like_safetensors(file.read(512)):
            return None
    keys = [key for infos in open_file(path).groups.values() for key in infos]
    return path if 2 * sum(any(word in key for word in LORA_WORDS) for key in keys) > len(keys) else None


def inspect_adapter(file: Path) -> AdapterReport:
    """What an adapter is. Raises CorruptFileError where it cannot be read, LoRAError where it is more than LoRA (DoRA)."""
    infos = {key: info for group in open_file(file).groups.values() for key, info in group.items()}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    unknown = []
    for key, info in infos.items():
        match = LORA_KEY.fullmatch(key)
        path = None if match is None else _path(match[1])
        if match is None or path is None:
            unknown.append(key)
        else:
            shapes.setdefault(path, {})[LORA_PARTS.get(match[2], "alpha")] = info.shape
    whole = {path: part for path, part in shapes.items() if len(part.get("down", ())) == len(part.get("up", ())) == 2}
    sizes = {path: (part["up"][0], part["down"][1]) for path, part in whole.items()}
    state = read_adapter(file)
    _, _, licence = described(file)
    alphas = {k for k in state if k.endswith(".alpha")}
    told = (
        "in .alpha tensors" if alphas & infos.keys() else "beside the tensors" if alphas else "not stated: alpha = rank"
    )
    return AdapterReport(
        file=f"{file.parent.name}/{file.name}".lstrip("/"),
        made_by=_made_by(infos),
        layers=len(whole),
        blocks=len({path.split(".")[1] for path in whole if path.startswith("blocks.")}),
        ranks=dict(Counter(part["down"][0] for part in whole.values())),
        parts=dict(Counter(keymaps.split(path)[1].removeprefix("blocks.") for path in whole)),
        parameters=sum(info.count for key, info in infos.items() if not key.endswith(".alpha")),
        dtypes=dict(Counter(info.dtype for info in infos.values())),
        scale=told,
        fits=() if unknown or not sizes else _fits(sizes),
        unknown=tuple(sorted(unknown)),
        licence=licence or UNSAID,
    )


def merge(
    file: Path,
    base: str | Path,
    out_dir: str | Path,
    *,
    to: To = "worldline",
    dtype: str | None = None,
    licence: str | None = None,
    origin: str | None = None,
    num_heads: int | None = None,
    progress: Progress | None = None,
) -> CheckpointReport:
    """Write `base`, of any layout that `convert` reads, with the adapter added in fp32: W + scale B A, stored as W was.

    Raises LoRAError where the adapter names a layer that the base lacks or a size differs, and what `convert` raises. Peak
    memory is the adapter's and one tensor's.
    """
    found = recognise(base, num_heads=num_heads)
    if found.report.faults:
        raise KeysError(f"{found.report.file} is not quite {found.report.layout}: {found.report.faults}")
    with torch.device("meta"):
        model = build_backbone(found.report.config)
    try:
        updates = updates_of(model, read_adapter(file))
    except LoRAError as error:
        raise LoRAError(f"{file.name} does not fit {base}: {error}") from error

    def changed(ours: str, weight: Tensor) -> Tensor:
        update = updates.get(ours.removesuffix(".weight"))
        if update is None or not ours.endswith(".weight"):
            return weight
        return (weight.float() + update.up @ update.down).to(weight.dtype)

    _, _, own = described(file)
    card = {"adapter": file.name, "layers": len(updates), "licence": own or UNSAID}
    what = Merge(changed, card)
    return convert(
        base, out_dir, to=to, dtype=dtype, num_heads=num_heads, licence=licence, origin=origin, progress=progress, merge=what
    )  # fmt: skip


def _path(name: str) -> str | None:
    """Our path of the layer that a file names; None where no Wan has it."""
    bare = keymaps.unwrap(name.removeprefix("base_model.model."))
    for ours in (f"{bare}.weight", WAN.ours(f"{bare}.weight")):
        if ours is not None and keymaps.role(ours) is not None:
            return ours.removesuffix(".weight")
    return None


def _made_by(keys: Mapping[str, Any]) -> str:
    heads = {key.split(".")[0] for key in keys}
    if all(key.startswith("base_model.model.") for key in keys):
        return "peft"
    if heads == {"transformer"}:
        return "diffusers (or worldline)"
    original = any(".self_attn." in key or ".cross_attn." in key for key in keys)
    if heads == {"diffusion_model"}:
        return "ComfyUI and others, original Wan's names" if original else "ComfyUI and others"
    return "original Wan's names" if original else "diffusers' names"


def _fits(sizes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Published models that have these layers; those of a camera, which they lack, do not count."""
    known = {path: size for path, size in sizes.items() if keymaps.role(f"{path}.weight") in ("base", "image")}
    fitting = []
    for name, config in PUBLISHED.items():
        shapes = expected_shapes(config)
        if known and all(shapes.get(f"{path}.weight") == size for path, size in known.items()):
            fitting.append(name)
    return tuple(fitting)
