"""The networks of a stage: whole, or as adapters on shared frozen bases."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from worldline.models.backbone import INJECTED, Backbone
from worldline.models.frugal import halve_frozen
from worldline.models.lora import LoRARole, add_lora, load_lora, lora_state, merge_lora
from worldline.recipes.schema import LoRASection, StageSection
from worldline.recipes.teachers import teachers
from worldline.recipes.workspace import Workspace
from worldline.schema import WorldlineError

ADAPTER = "adapter.safetensors"  # beside a LoRA stage's model, under diffusers' names


def sources(section: StageSection) -> dict[str, tuple[str, bool]]:
    """Role -> (the stage its weights come from, whether it is trained)."""
    named = section.roles()
    start = named.pop("init")
    first = "generator" if section.method == "dmd" else "model"
    return {first: (start, True), **{role: (stage, role == "fake") for role, stage in named.items()}}


def networks(ws: Workspace, section: StageSection) -> dict[str, Backbone]:
    """Every network that a stage's method takes, transformers of diffusers among them. Frozen matrices are kept in bf16
    where the stage computes in it.

    With `lora`, a network is its stage's adapter on the weights those stages began with, loaded once for all networks
    that began there. Raises WorldlineError where weights or adapters are missing or do not fit.
    """
    half = section.train.precision == "bf16"
    foreign = teachers(section, half=half)
    if section.lora is None:
        return foreign | {
            role: ws.model(stage) if trained else _freeze(ws.model(stage), half)
            for role, (stage, trained) in sources(section).items()
        }
    bases: dict[str, Backbone] = {}
    adapted: dict[str, tuple[Backbone, str | None]] = {}
    for role, (stage, trained) in sources(section).items():
        root = ws.recipe.lora_root(stage)
        if root not in bases:
            bases[root] = _root(ws, root)
            _freeze(bases[root], half)
        base = bases[root]
        name = role if trained or stage != root else None
        if name is not None:
            lora = section.lora if stage == root else ws.recipe.stages[stage].lora
            assert lora is not None, "a stage that is not its own root has an adapter"
            add_adapter(base, lora, role)
            if trained and root == "base":
                _check_nothing_stays_silent(base, lora)
            if stage != root:
                load_lora(base, load_file(ws.run_dir / stage / ADAPTER), adapter=role)
        adapted[role] = (base, name)
    shared = [base for base, name in adapted.values() if name is not None]
    return foreign | {
        role: LoRARole(base, name) if any(base is other for other in shared) else base
        for role, (base, name) in adapted.items()
    }


def merged(ws: Workspace, stage: str, role: LoRARole, directory: Path) -> Backbone:
    """A LoRA stage's result as a whole model in fp32; the adapter itself is written to `directory`."""
    lora = ws.recipe.stages[stage].lora
    assert lora is not None, "only stages with `lora` train adapters"
    assert role.adapter is not None, "and those roles have one"
    state = lora_state(role.base, adapter=role.adapter)
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, directory / ADAPTER)
    whole = _root(ws, ws.recipe.lora_root(stage))
    return merge_lora(load_lora(add_adapter(whole, lora, "trained"), state, adapter="trained"), "trained")


def _root(ws: Workspace, stage: str) -> Backbone:
    """The weights that adapters are on. What a base lacks is drawn alike for every stage: their adapters rely on it."""
    with torch.random.fork_rng():
        torch.manual_seed(ws.recipe.seed)
        return ws.model(stage)


def _freeze(model: Backbone, half: bool) -> Backbone:
    model.requires_grad_(False)
    if half:
        halve_frozen(model)
    return model


def _check_nothing_stays_silent(base: Backbone, lora: LoRASection) -> None:
    """Parts that steer start at zero, and a base is frozen: those that no adapter reaches would never act."""
    found = {path: module for path, module in base.named_modules() if any(part in path for part in INJECTED)}
    kinds = (torch.nn.Linear, torch.nn.Conv3d)
    silent = [
        p for p, module in found.items() if isinstance(module, kinds) and ".lora_" not in p and not module.weight.any()
    ]
    if silent:
        raise WorldlineError(
            f"lora.targets {lora.targets} leave {len(silent)} silent layers of the camera untrained ({silent[0]}); name them "
            f"too, such as {silent[0].split('.', 2)[-1] if silent[0].startswith('blocks.') else silent[0]}, or train a first "
            "stage without lora"
        )


def add_adapter(model: Backbone, lora: LoRASection, adapter: str) -> Backbone:
    """A silent adapter on `model`, as a recipe says it."""
    return add_lora(model, lora.rank, lora.alpha, lora.targets, adapter=adapter)  # type: ignore[arg-type]
