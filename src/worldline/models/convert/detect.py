"""Explaining a checkpoint: every key by its role, and every key that stays unexplained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldline.models.convert import hunyuan, keymaps
from worldline.models.convert.errors import KeysError
from worldline.models.convert.families import OTHER_NETS, Which, choose, preferred, weight_set
from worldline.models.convert.keymaps import DIFFUSERS, OURS, WAN, WORLDPLAY, Naming
from worldline.models.convert.published import NOTES, licence_of
from worldline.models.convert.reading import described, locate, open_source
from worldline.models.convert.report import CheckpointReport
from worldline.models.convert.sizes import config_of, expected_shapes, variant_of
from worldline.models.convert.tensors import Source, TensorInfo
from worldline.models.hunyuan15 import HunyuanConfig
from worldline.models.wan import WanConfig


@dataclass(frozen=True)
class Recognised:
    """A checkpoint with its explanation: our name -> the name in the file, within one set of weights."""

    source: Source
    group: str
    names: Mapping[str, str]
    card: Mapping[str, Any]
    report: CheckpointReport
    role: Callable[[str], str]  # what a tensor under our name is for

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
    namings = {group: hunyuan.which_naming(infos) for group, infos in source.groups.items() if group not in OTHER_NETS}
    if any(namings.values()):
        group = preferred([group for group, naming in namings.items() if naming is not None], which, weights.name)
        file = f"{weights.parent.name}/{weights.name}".lstrip("/")
        source, names, report = hunyuan.explain(source, group, namings[group] or "", config_json, file, stated_licence)
        return Recognised(source, group, names, card, report, hunyuan.role)
    group, naming = choose(source, which, weights.name)
    infos = source.groups[group]
    names, unknown = _explain(infos, naming, weights.name)
    config, heads_known = config_of(
        {k: infos[v] for k, v in names.items()}, source, config_json, num_heads, weights.name
    )
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
        variant=variant_of(config),
        config=config,
        heads_known=heads_known,
        sets=tuple(weight_set(name, tensors, name == group) for name, tensors in source.groups.items()),
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
        notes=NOTES.get(layout, ()),
    )
    return Recognised(source, group, names, card, report, lambda key: str(keymaps.role(key)))


def shapes_of(config: WanConfig | HunyuanConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of our model of these sizes, made without memory."""
    return expected_shapes(config) if isinstance(config, WanConfig) else hunyuan.expected_shapes(config)


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
