"""Converting a checkpoint: renamed tensor by tensor into a new folder that appears whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from worldline.models.convert import hunyuan, keymaps
from worldline.models.convert.detect import Recognised, recognise
from worldline.models.convert.errors import InDoubtError, KeysError, OutputError
from worldline.models.convert.families import Which
from worldline.models.convert.keymaps import DIFFUSERS, OURS, WAN
from worldline.models.convert.report import CheckpointReport
from worldline.models.convert.safetensors_file import write_safetensors
from worldline.models.convert.sizes import CONFIG_KEY
from worldline.models.convert.target import Target
from worldline.models.convert.tensors import NAMES, TensorInfo
from worldline.models.hunyuan15 import HunyuanConfig
from worldline.models.wan import WanConfig

To = Literal["worldline", "diffusers", "wan", "hunyuan"]
Progress = Callable[[int, int], None]
DTYPE_OPTIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _ours(cfg: WanConfig, names: Collection[str]) -> dict[str, Any]:
    return {"kind": "wan", "config": dataclasses.asdict(cfg)}


def _diffusers(cfg: WanConfig, names: Collection[str]) -> dict[str, Any]:
    image = any(keymaps.role(name) == "image" for name in names)
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(cfg.patch_size),
        "num_attention_heads": cfg.num_heads,
        "attention_head_dim": cfg.head_dim,
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "text_dim": cfg.text_dim,
        "freq_dim": cfg.freq_dim,
        "ffn_dim": cfg.ffn_dim,
        "num_layers": cfg.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": cfg.eps,
        "image_dim": 1280 if image else None,
        "added_kv_proj_dim": cfg.dim if image else None,
        "rope_max_seq_len": 1024,
    }


def _wan(cfg: WanConfig, names: Collection[str]) -> dict[str, Any]:
    image = any(keymaps.role(name) == "image" for name in names)
    return {
        "_class_name": "WanModel",
        "model_type": "i2v" if image else "ti2v" if cfg.in_channels == 48 else "t2v",
        "patch_size": list(cfg.patch_size),
        "dim": cfg.dim,
        "ffn_dim": cfg.ffn_dim,
        "freq_dim": cfg.freq_dim,
        "in_dim": cfg.in_channels,
        "out_dim": cfg.out_channels,
        "num_heads": cfg.num_heads,
        "num_layers": cfg.num_layers,
        "text_dim": cfg.text_dim,
        "text_len": cfg.text_len,
        "eps": cfg.eps,
    }


TARGETS: dict[str, Target] = {
    "worldline": Target(OURS.theirs, "model.safetensors", _ours),
    "diffusers": Target(DIFFUSERS.theirs, "diffusion_pytorch_model.safetensors", _diffusers),
    "wan": Target(WAN.theirs, "diffusion_pytorch_model.safetensors", _wan),
}


@dataclass(frozen=True)
class Merge:
    """What is added to tensors on their way."""

    changed: Callable[[str, torch.Tensor], torch.Tensor]  # (our name, the tensor) -> what is written
    card: dict[str, Any]  # says what it was


# What may be left out, and what the config says then.
LEAVABLE: dict[str, dict[str, Any]] = {
    "camera": {"camera": "none"},
    "motion": {"motion": False},
    "action": {"actions": 0},
}


def convert(
    path: str | Path,
    out_dir: str | Path,
    *,
    to: To = "worldline",
    which: Which = "ema",
    leave_out: Collection[str] = (),
    dtype: str | None = None,
    num_heads: int | None = None,
    licence: str | None = None,
    origin: str | None = None,
    progress: Progress | None = None,
    merge: Merge | None = None,
) -> CheckpointReport:
    """Convert a checkpoint into a new folder and say what it was.

    to: `worldline` (config.json, model.safetensors; what load_model reads), `diffusers` (what from_pretrained reads), or the
    original names of its family, `wan` or `hunyuan` (minWM's for the camera branch). which: EMA weights where there are
    any, or the raw ones. leave_out: of `camera`, `action`, `motion`, what may be dropped because the target has no place
    for it; nothing is ever dropped unasked. dtype: of DTYPE_OPTIONS; default as in the file. num_heads, licence, origin:
    what the file cannot say. progress: called with bytes done and in all. merge: an adapter, see `adapters.merge`.

    Peak memory is about one tensor for safetensors; a torch file is mapped, so at most its chosen weights.
    Raises what `inspect` raises, KeysError for unexplained, missing or unplaceable tensors, InDoubtError, OutputError.
    """
    if to not in get_args(To):
        raise InDoubtError(f"target {to!r}; expected one of {', '.join(get_args(To))}")
    if strange := set(leave_out) - set(LEAVABLE):
        raise InDoubtError(f"cannot leave out {sorted(strange)}; expected some of {', '.join(sorted(LEAVABLE))}")
    if dtype is not None and dtype not in DTYPE_OPTIONS:
        raise InDoubtError(f"dtype {dtype!r}; expected one of {', '.join(DTYPE_OPTIONS)}")
    found = recognise(path, which=which, num_heads=num_heads)
    target = _target(found, to)
    kept, config = _kept(found, target, to, frozenset(leave_out))
    tensors = {
        theirs: _stored(Target.stacked([found.info(name) for name in ours]), dtype, theirs)
        for theirs, ours in kept.items()
    }

    def read(theirs: str) -> torch.Tensor:
        parts = [found.read(ours) for ours in kept[theirs]]
        if merge is not None:
            parts = [merge.changed(ours, part) for ours, part in zip(kept[theirs], parts, strict=True)]
        tensor = target.join(theirs, parts)
        return tensor.to(DTYPE_OPTIONS[dtype]) if dtype is not None and tensor.is_floating_point() else tensor

    card = {
        "licence": licence or found.report.licence,
        "origin": origin or found.report.file,
        "converted": {
            "layout": found.report.layout,
            "weights": found.report.chosen or "the only set",
            "tensors": len(tensors),
            "left_out": sorted(leave_out),
            "dtype": dtype or "as in the file",
        },
        **({} if merge is None else {"merged": merge.card}),
        "variant": found.report.variant,
        **({"notes": list(found.report.notes)} if found.report.notes else {}),
        **({"card_before": dict(found.card)} if found.card else {}),
    }
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(dataclasses.asdict(config))}
    total, done = sum(info.nbytes for info in tensors.values()), 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    def fill(folder: Path) -> None:
        write_safetensors(folder / target.weights, tensors, read, metadata, advance)
        (folder / "config.json").write_text(json.dumps(target.config(config, found.names), indent=2) + "\n")
        (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    _appear_whole(Path(out_dir), total, fill)
    return found.report


def _target(found: Recognised, to: To) -> Target:
    """The kind of folder asked for, of the checkpoint's family."""
    targets = TARGETS if isinstance(found.report.config, WanConfig) else hunyuan.TARGETS
    if to not in targets:
        raise InDoubtError(f"a {found.report.family} model as {to!r}; expected one of {', '.join(targets)}")
    return targets[to]


def _kept(
    found: Recognised, target: Target, to: To, leave_out: frozenset[str]
) -> tuple[dict[str, list[str]], WanConfig | HunyuanConfig]:
    """The target's name -> our names of every tensor to write, in the model's order, and the config that goes with them."""
    report = found.report
    if report.faults:
        raise KeysError(
            f"{report.file} is not quite {report.layout}: {report.faults}; nothing was written. `worldline "
            "inspect-checkpoint` lists them all"
        )
    if not report.heads_known:
        raise InDoubtError(
            f"{report.file}: the number of attention heads is not in the weights (width {report.config.dim}) and no "
            "config.json beside them says it; give --heads (num_heads)"
        )
    kept: dict[str, list[str]] = {}
    homeless, config = set(), report.config
    for ours in found.names:
        role, theirs = found.role(ours), target.theirs(ours)
        if role not in leave_out and theirs is not None:
            kept.setdefault(theirs, []).append(ours)
        elif role not in leave_out:
            homeless.add(role)
    for role in leave_out:
        config = dataclasses.replace(config, **LEAVABLE[role])
    if config.camera == "fused" and to != "worldline":  # a camera without weights of its own
        homeless.add("camera")
    if homeless:
        able = homeless <= set(LEAVABLE)
        mend = f"; to go on without, say --leave-out {' --leave-out '.join(sorted(homeless))}" if able else ""
        raise KeysError(
            f"{report.file}: its {', '.join(sorted(homeless))} part has no place in a {to} model{mend}; "
            "the rest would not act as the whole did"
        )
    return kept, config


def _stored(info: TensorInfo, dtype: str | None, ours: str) -> TensorInfo:
    if not info.itemsize:
        raise KeysError(f"tensor {ours} has dtype {info.dtype}; expected one of {', '.join(sorted(NAMES.values()))}")
    floating = info.dtype.startswith(("F", "BF"))
    return TensorInfo(NAMES[DTYPE_OPTIONS[dtype]], info.shape) if dtype is not None and floating else info


def _appear_whole(out: Path, nbytes: int, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name beside `out`, then rename it; on any failure nothing is left."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists already; choose a new folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < nbytes:
            raise OutputError(f"{out.parent} has {free / 1e9:.1f} GB free, the model needs {nbytes / 1e9:.1f} GB")
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise OutputError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        partial.chmod(0o755)
        fill(partial)
        os.replace(partial, out)
    except OSError as error:
        raise OutputError(f"writing to {out} failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
