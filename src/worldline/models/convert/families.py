"""Which of a file's sets of weights is meant, which naming explains it, and what a foreign file resembles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from worldline.models.convert import keymaps
from worldline.models.convert.errors import InDoubtError, UnknownFamilyError, some
from worldline.models.convert.keymaps import NAMINGS, Naming
from worldline.models.convert.report import WeightSet
from worldline.models.convert.tensors import Source, TensorInfo

Which = Literal["ema", "raw"]
EMA_SETS = ("generator_ema", "model_ema", "ema")
RAW_SETS = ("generator", "model", "state_dict", "module", "")
OTHER_NETS = {"critic": "critic", "fake_score": "critic", "real_score": "teacher", "generator_lora": "LoRA"}
LORA_WORDS = ("lora_A", "lora_B", "lora_down", "lora_up")

# Words in the keys of families that we know by sight and do not convert.
SIGHTED: dict[str, tuple[str, ...]] = {
    "HunyuanVideo": ("double_blocks", "single_blocks", "img_in", "txt_in", "vector_in", "guidance_in", "final_layer"),
    "HunyuanVideo (diffusers)": ("x_embedder", "context_embedder", "transformer_blocks", "single_transformer_blocks"),
    "LTX": ("patchify_proj", "adaln_single", "transformer_blocks", "audio_patchify_proj", "proj_in"),
    "a video VAE": ("encoder", "decoder", "quant_conv", "post_quant_conv", "conv1", "conv2"),
    "a UMT5 text encoder": ("token_embedding", "shared", "encoder.block", "encoder.final_layer_norm", "pos_embedding"),
    "a worldline codec": ("encoder", "decoder", "mean", "std"),
}


def _share(infos: Collection[str], naming: Naming) -> float:
    """How much of a set a naming explains; a set without a patch embedding is no video transformer."""
    bare = {keymaps.unwrap(k) for k in infos}
    if not bare or "patch_embedding.weight" not in bare:
        return 0.0
    return sum(naming.ours(k) is not None for k in bare) / len(bare)


def choose(source: Source, which: Which, file: str) -> tuple[str, Naming]:
    """The set of weights to look at, and its naming.

    Raises UnknownFamilyError where nothing is a Wan transformer, InDoubtError where it is not clear which set is meant.
    """
    if not source.groups:
        raise UnknownFamilyError(f"{file} holds no tensors ({some(source.extras) or 'it is empty'}); expected a model")
    best = {group: max(NAMINGS, key=lambda n: _share(infos, n)) for group, infos in source.groups.items()}
    fit = [g for g, naming in best.items() if _share(source.groups[g], naming) > 0.5 and g not in OTHER_NETS]
    if not fit:
        raise UnknownFamilyError(_nearest(source, file))
    group = preferred(fit, which, file)
    return group, best[group]


def preferred(fit: Collection[str], which: Which, file: str) -> str:
    """The set that is meant, of those that hold a model. Raises InDoubtError."""
    ema, raw = [g for g in EMA_SETS if g in fit], [g for g in RAW_SETS if g in fit]
    order = [*ema, *raw] if which == "ema" else raw
    if not order:
        rest = [g for g in fit if g not in EMA_SETS]
        if len(rest) != 1:
            raise InDoubtError(
                f"{file} holds no {which} weights, only {some(fit)}; expected one of {some(EMA_SETS + RAW_SETS)}"
            )
        order = rest
    return order[0]


def _nearest(source: Source, file: str) -> str:
    """Why a file is no Wan, and what it resembles."""
    keys = [keymaps.unwrap(k) for infos in source.groups.values() for k in infos]
    if any(word in key for key in keys for word in LORA_WORDS):
        return (
            f"{file} is a LoRA: changes to a model, not a model; as safetensors it can be merged into its base: worldline "
            f"convert {file} --base DIR --merge --out DIR"
        )
    scores = {f"Wan ({n.title})": _known(keys, n.naming) for n in _titles()}
    for family, words in SIGHTED.items():
        hits = sum(any(k == w or k.startswith(w + ".") for k in keys) for w in words)
        scores[family] = hits / len(words)
    near = [f"{name} {share:.0%}" for name, share in sorted(scores.items(), key=lambda s: -s[1])[:3] if share > 0]
    likeness = f"nearest: {', '.join(near)}" if near else f"nothing resembles its keys ({some(keys, 3)})"
    return f"{file} is no Wan or HunyuanVideo-1.5 transformer, the families that are converted; {likeness}"


def _known(keys: list[str], naming: Naming) -> float:
    return sum(naming.ours(k) is not None for k in keys) / len(keys)


def _titles() -> list[keymaps.Layout]:
    return [keymaps.LAYOUTS[name] for name in ("diffusers", "wan", "worldplay")]


def weight_set(name: str, infos: Mapping[str, TensorInfo], chosen: bool) -> WeightSet:
    """What a set of a file is."""
    weights = chosen or max(_share(infos, naming) for naming in NAMINGS) > 0.5
    if any(word in key for key in infos for word in LORA_WORDS):
        what = "LoRA"
    elif name in OTHER_NETS:
        what = OTHER_NETS[name]
    elif not weights:
        what = "not weights of this family"
    else:
        what = "EMA weights" if name in EMA_SETS else "weights"
    return WeightSet(name, len(infos), sum(i.nbytes for i in infos.values()), what)
