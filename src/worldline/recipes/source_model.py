"""A world model to start from: recognised, its tensors mapped to what is wanted, its weights put where a recipe reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from worldline.models.convert import CheckpointReport, convert, inspect
from worldline.models.convert.detect import shapes_of
from worldline.models.convert.families import Which
from worldline.models.convert.published import Maturity, maturity_of
from worldline.models.registry import BackboneConfig, variant
from worldline.recipes.assets import LINE, bundled
from worldline.recipes.load import load_recipe
from worldline.recipes.schema import MULTI_STEP_CAUSAL
from worldline.schema import WorldlineError
from worldline.stream.world import WorldConfig

MATURITY_OF_METHOD: dict[str, Maturity] = {"finetune": "bidirectional"}
MATURITY_OF_METHOD |= dict.fromkeys(MULTI_STEP_CAUSAL, "causal")
MATURITY_OF_METHOD |= dict.fromkeys(("ode", "consistency", "dmd"), "few-step")
RECIPE_OF_VARIANT = {
    "nano": "nano-demo", "nano-hy": "nano-hy", "hunyuan-1.5": "hunyuan-8b", "wan2.1-t2v-1.3b": "wan-1.3b",
    "wan2.2-ti2v-5b": "wan-5b",
}  # fmt: skip
PARTS: dict[str, Literal["camera", "motion", "action"]] = {"camera": "camera", "motion": "motion", "actions": "action"}
MARK = "adapted.json"  # beside a converted source: what it was made from


class AdaptError(WorldlineError):
    """A source, or a way to go on from it, that does not work out: names it and what to say instead."""


@dataclass(frozen=True)
class Source:
    """A world model to start from. report: what its weights are; world: how it is streamed, where it is a world; run: the run
    it is part of, whose other stages can teach."""

    path: Path
    report: CheckpointReport
    maturity: Maturity | None
    run: Path | None = None
    world: WorldConfig | None = None

    @property
    def config(self) -> BackboneConfig:
        """Of its weights."""
        return self.report.config

    @property
    def ours(self) -> bool:
        """Whether it is a model directory of this package."""
        return self.report.layout == "worldline" and (self.path / "config.json").is_file()

    def ready(self, mapped: KeyMap) -> bool:
        """Whether its weights can be read as they are: nothing is renamed or dropped."""
        return self.ours and not mapped.leave_out


@dataclass(frozen=True)
class KeyMap:
    """What becomes of tensors: of the source's config to the target's. Names are ours."""

    kept: int
    new: tuple[str, ...]  # initialised so that they act only once trained
    dropped: tuple[str, ...]
    leave_out: tuple[str, ...]  # parts, for the conversion
    unlike: str  # why the model does not start as the source's function; empty where it does


def recognise(name: str, *, which: Which = "ema", num_heads: int | None = None) -> Source:
    """What a path, or `nano` (the bundled world), or `nano/base`, is. Raises AdaptError, and what `inspect` raises."""
    path = {LINE: bundled("world"), f"{LINE}/base": bundled("base")}.get(name) or Path(name)
    run = path if (path / "recipe.yaml").is_file() else None
    if run is not None and not (path / "world" / "world.json").is_file():
        done = [s for s in load_recipe(run / "recipe.yaml").stages if (run / s / "model" / "config.json").is_file()]
        if not done:
            raise AdaptError(f"{path} is a run without a finished model; finish a stage, or name a checkpoint")
        path = run / done[-1] / "model"
    elif run is not None:
        path = run / "world"
    elif (path / "stage.json").is_file() and (path / "model").is_dir():
        path = path / "model"
    run = run or next((p for p in path.resolve().parents[:2] if (p / "recipe.yaml").is_file()), None)
    report = inspect(path, which=which, num_heads=num_heads)
    if report.faults:
        raise AdaptError(
            f"{path} is not quite {report.layout}: {report.faults}; `worldline inspect-checkpoint` lists them"
        )
    if not report.heads_known:
        raise AdaptError(f"{path}: the number of attention heads is not in the weights; give --heads")
    world = WorldConfig.read(path) if (path / "world.json").is_file() else None
    return Source(path, report, _maturity(path, report, run, world), run, world)


def _maturity(path: Path, report: CheckpointReport, run: Path | None, world: WorldConfig | None) -> Maturity | None:
    """By its world or card, else by the names of its path; a plain video model is bidirectional."""
    if world is not None:
        return "few-step" if len(world.sigmas) <= 8 else "causal"
    card = json.loads((path / "card.json").read_text()) if path.is_dir() and (path / "card.json").is_file() else {}
    stage = card.get("stage")
    if stage == "base":
        return "bidirectional"
    if stage is not None and run is not None and stage in (stages := load_recipe(run / "recipe.yaml").stages):
        return MATURITY_OF_METHOD[stages[stage].method]
    told = [Path(str(word)) for word in (stage, card.get("origin")) if word]  # a card knows better than a folder's name
    said = next((found for found in map(maturity_of, [*told, path]) if found is not None), None)
    plain = report.variant is not None and not steered(report.config) and report.layout in ("diffusers", "original Wan")
    return said or ("bidirectional" if plain else None)


def steered(config: BackboneConfig) -> bool:
    """Whether a model takes controls at all."""
    return config.camera != "none" or config.motion or config.actions > 0


def mapping(source: BackboneConfig, target: BackboneConfig) -> KeyMap:
    """Which tensors stay, which are new and silent, which go, and whether the function does."""
    have, want = shapes_of(source), shapes_of(target)
    kept = {k for k in have if want.get(k) == have[k]}
    gone = [name for name in PARTS if getattr(source, name) not in (getattr(target, name), "none", False, 0)]
    why = []
    for name in gone:
        after = getattr(target, name)
        why.append(f"{name} {getattr(source, name)} " + (f"gives way to {after}" if after else "is left out"))
    if target.camera == "fused" and source.camera != "fused":
        why.append("fused cameras turn queries and keys from the first step on")
    if target.camera == source.camera == "fused" and target.camera_share != source.camera_share:
        why.append(f"camera_share {source.camera_share} becomes {target.camera_share}")
    for name in ("text_mode", "legacy_prope_cache"):
        before, after = getattr(source, name, None), getattr(target, name, None)
        if before != after:
            why.append(f"{name} {before} becomes {after}")
    return KeyMap(
        len(kept), tuple(k for k in want if k not in kept), tuple(k for k in have if k not in kept),
        tuple(PARTS[name] for name in gone), "; ".join(why),
    )  # fmt: skip


def prepare(
    source: Source, mapped: KeyMap, out: Path, *, which: Which = "ema", num_heads: int | None = None, **more: Any
) -> Path:
    """The source's weights as a model directory: itself, where it is one and nothing is dropped, else converted to `out`
    (kept where it was made from the same file before). more: for `convert` (progress, licence, origin)."""
    if source.ready(mapped):
        return source.path
    weights = source.path if source.path.is_file() else max(source.path.glob("*.*"), key=lambda p: p.stat().st_size)
    stat = weights.stat()
    mark = {
        "file": hashlib.sha256(f"{weights.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16],
        "which": which, "left_out": sorted(mapped.leave_out),
    }  # fmt: skip
    if (out / MARK).is_file():
        if json.loads((out / MARK).read_text()) == mark:
            return out
        shutil.rmtree(out)
    convert(source.path, out, which=which, num_heads=num_heads, leave_out=mapped.leave_out, **more)
    (out / MARK).write_text(json.dumps(mark) + "\n")
    return out


def default_recipe(report: CheckpointReport) -> str:
    """The library recipe of a published size. Raises AdaptError for other sizes."""
    plain: dict[str, Any] = {"camera": "none", "motion": False, "actions": 0, "camera_share": 0.5}
    for name, recipe in RECIPE_OF_VARIANT.items():
        sizes = variant(name)
        if type(sizes) is type(report.config):
            free: dict[str, Any] = {k: getattr(sizes, k) for k in sizes.FREE}
            if replace(report.config, **{**free, **plain}) == replace(sizes, **plain):
                return recipe
    raise AdaptError(
        f"{report.file} has no published size (width {report.config.dim}, {report.config.num_layers} layers); name a recipe of "
        f"its family (--recipe, such as {', '.join(sorted(RECIPE_OF_VARIANT.values()))})"
    )
