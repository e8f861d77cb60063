"""HunyuanVideo-1.5 in the original naming (Tencent's, minWM's, WorldPlay's) and in diffusers', which is ours.

Between them lie two things besides names: the refiner's queries, keys and values are one tensor in the original, and its last
layer has shift before scale where diffusers has scale before shift.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch

from worldline.models.convert import keymaps
from worldline.models.convert.errors import InDoubtError, KeysError
from worldline.models.convert.families import EMA_SETS, OTHER_NETS
from worldline.models.convert.report import CheckpointReport, WeightSet
from worldline.models.convert.target import Target
from worldline.models.convert.tensors import Source, TensorInfo
from worldline.models.hunyuan15 import HUNYUAN_VARIANTS, HunyuanConfig, HunyuanModel
from worldline.schema import WorldlineError

LICENCE = (
    "Tencent Hunyuan Community Licence (not for the European Union, the United Kingdom and South Korea; terms of use for "
    "weights and outputs)"
)
WORLDPLAY_TERMS_8B = "Tencent HY-WorldPlay community licence (territory, user and output limits)"
Role = Literal["base", "camera", "motion", "action"]

_EMBEDDER = (("0", "linear_1"), ("2", "linear_2"))
TOP: dict[str, str] = {
    "img_in.proj": "x_embedder.proj",
    **{f"time_in.mlp.{a}": f"time_embed.timestep_embedder.{b}" for a, b in _EMBEDDER},
    **{f"time_r_in.mlp.{a}": f"time_embed.timestep_embedder_r.{b}" for a, b in _EMBEDDER},
    **{f"txt_in.t_embedder.mlp.{a}": f"context_embedder.time_text_embed.timestep_embedder.{b}" for a, b in _EMBEDDER},
    **{f"txt_in.c_embedder.linear_{n}": f"context_embedder.time_text_embed.text_embedder.linear_{n}" for n in (1, 2)},
    "txt_in.input_embedder": "context_embedder.proj_in",
    "byt5_in.layernorm": "context_embedder_2.norm",
    **{f"byt5_in.fc{n}": f"context_embedder_2.linear_{n}" for n in (1, 2, 3)},
    "vision_in.proj.0": "image_embedder.norm_in",
    "vision_in.proj.1": "image_embedder.linear_1",
    "vision_in.proj.3": "image_embedder.linear_2",
    "vision_in.proj.4": "image_embedder.norm_out",
    "cond_type_embedding": "cond_type_embed",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
    **{f"action_in.mlp.{a}": f"time_embed.action_embedder.{b}" for a, b in _EMBEDDER},
}
BLOCK: dict[str, str] = {
    "img_mod.linear": "norm1.linear",
    "txt_mod.linear": "norm1_context.linear",
    **{f"img_attn_{x}": f"attn.to_{x}" for x in "qkv"},
    "img_attn_proj": "attn.to_out.0",
    **{f"txt_attn_{x}": f"attn.add_{x}_proj" for x in "qkv"},
    "txt_attn_proj": "attn.to_add_out",
    **{f"img_attn_{x}_norm": f"attn.norm_{x}" for x in "qk"},
    **{f"txt_attn_{x}_norm": f"attn.norm_added_{x}" for x in "qk"},
    "img_mlp.fc1": "ff.net.0.proj",
    "img_mlp.fc2": "ff.net.2",
    "txt_mlp.fc1": "ff_context.net.0.proj",
    "txt_mlp.fc2": "ff_context.net.2",
    "img_attn_prope_proj": "attn.prope_o",
}
REFINER: dict[str, str] = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn_proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm_out.linear",
}
FUSED, FUSED_INTO = "self_attn_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")
SWAPPED = "norm_out.linear."  # outside of blocks

# (ours, original) words before a block's number, and the names behind it.
_BLOCKS = (
    ("transformer_blocks.", "double_blocks.", BLOCK),
    ("context_embedder.token_refiner.refiner_blocks.", "txt_in.individual_token_refiner.blocks.", REFINER),
)
_KEY = re.compile(r"(.*?)(\.weight|\.bias)?", re.DOTALL)


def _stem(key: str) -> tuple[str, str]:
    match = _KEY.fullmatch(key)
    assert match is not None  # the first group takes anything
    return match[1], match[2] or ""


def ours_of(original: str) -> tuple[str, ...]:
    """Our names of an original tensor, in its order; empty where it has none."""
    stem, leaf = _stem(original)
    for ours, theirs, table in _BLOCKS:
        if stem.startswith(theirs):
            number, _, rest = stem.removeprefix(theirs).partition(".")
            names = FUSED_INTO if table is REFINER and rest == FUSED else (table.get(rest),)
            return tuple(f"{ours}{number}.{name}{leaf}" for name in names if name is not None and number.isdigit())
    return (TOP[stem] + leaf,) if stem in TOP else ()


_TOP_BACK = {b: a for a, b in TOP.items()}
_BACK = {id(table): {b: a for a, b in table.items()} for table in (BLOCK, REFINER)}


def original_of(ours: str) -> str | None:
    """The original's name of one of our tensors; None where it has none."""
    stem, leaf = _stem(ours)
    for prefix, theirs, table in _BLOCKS:
        if stem.startswith(prefix):
            number, _, rest = stem.removeprefix(prefix).partition(".")
            fused = table is REFINER and rest in FUSED_INTO
            name = FUSED if fused else _BACK[id(table)].get(rest)
            return None if name is None else f"{theirs}{number}.{name}{leaf}"
    return _TOP_BACK[stem] + leaf if stem in _TOP_BACK else None


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def role(ours: str) -> Role:
    """What a tensor is for."""
    words = {"prope_o": "camera", "motion_embedder": "motion", "action_embedder": "action"}
    found: Any = next((role for word, role in words.items() if word in ours), "base")
    return found


def _diffusers_name(ours: str) -> str | None:
    return ours if role(ours) == "base" else None


def _original(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return _swapped(whole) if name.startswith("final_layer.adaLN_modulation") else whole


class InOurNames:
    """A checkpoint in the original naming, read as if it were in ours. A tensor that it does not explain keeps its name."""

    def __init__(self, source: Source, group: str) -> None:
        self.source, self.group = source, group
        self.container, self.metadata, self.extras = source.container, source.metadata, source.extras
        self._where: dict[str, tuple[str, int, int]] = {}  # our name -> (theirs, which part, of how many)
        infos: dict[str, TensorInfo] = {}
        for key, info in source.groups[group].items():
            names = ours_of(keymaps.unwrap(key)) or (key,)
            rows = info.shape[0] // len(names) if info.shape else 0
            for part, name in enumerate(names):
                if name in infos:
                    raise KeysError(f"{self._where[name][0]} and {key} both mean {name}; expected one")
                infos[name] = info if len(names) == 1 else TensorInfo(info.dtype, (rows, *info.shape[1:]))
                self._where[name] = (key, part, len(names))
        self.groups = {group: infos}

    def read(self, group: str, name: str) -> torch.Tensor:
        """One tensor under our name."""
        key, part, of = self._where[name]
        tensor = self.source.read(self.group, key)
        tensor = tensor if of == 1 else tensor.chunk(of)[part]
        return (_swapped(tensor) if name.startswith(SWAPPED) else tensor).contiguous()


def which_naming(infos: Collection[str]) -> str | None:
    """`original` or `diffusers`, where a set of tensors is a HunyuanVideo-1.5 transformer; else None."""
    bare = {keymaps.unwrap(key) for key in infos}
    if "img_in.proj.weight" in bare and any(key.startswith("double_blocks.") for key in bare):
        # The first HunyuanVideo has single blocks, too, and another text path.
        return "original" if "byt5_in.fc1.weight" in bare or "cond_type_embedding.weight" in bare else None
    ours = {"x_embedder.proj.weight", "cond_type_embed.weight", "context_embedder.proj_in.weight"}
    return "diffusers" if ours <= bare else None


def config_of(infos: Mapping[str, TensorInfo], stated: Mapping[str, Any], file: str) -> HunyuanConfig:
    """Sizes from shapes; rotary dims and text lengths from what is written beside the weights, else as published.

    stated: config.json, ours or diffusers'. Raises KeysError where sizes do not show, InDoubtError where they must be said.
    """
    ours = stated.get("config", {}) if stated.get("kind") == "hunyuan15" else {}
    try:
        dim, channels, *patch = infos["x_embedder.proj.weight"].shape
        head = infos["transformer_blocks.0.attn.norm_q.weight"].shape[0]
        seen: dict[str, Any] = {
            "dim": dim,
            "num_heads": dim // head,
            "in_channels": (channels - 1) // 2,
            "out_channels": infos["proj_out.weight"].shape[0] // (patch[1] * patch[2]),
            "patch_size": tuple(patch),
            "text_dim": infos["context_embedder.proj_in.weight"].shape[1],
            "ffn_dim": infos["transformer_blocks.0.ff.net.0.proj.weight"].shape[0],
            "refiner_ffn_dim": infos[f"{_BLOCKS[1][0]}0.ff.net.0.proj.weight"].shape[0],
            "freq_dim": infos["time_embed.timestep_embedder.linear_1.weight"].shape[1],
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise KeysError(
            f"{file}: the sizes of the model cannot be told ({error}); expected embedders, first blocks and head; is it one "
            "shard of several?"
        ) from error
    lens = tuple(ours.get("text_lens", HUNYUAN_VARIANTS["hunyuan-1.5"].text_lens))
    has = (True, "context_embedder_2.linear_1.weight" in infos, "image_embedder.linear_1.weight" in infos)
    seen["text_lens"] = tuple(n if there else 0 for n, there in zip(lens, has, strict=True))
    if has[1]:
        seen["byt5_hidden"], seen["byt5_dim"] = infos["context_embedder_2.linear_1.weight"].shape
    if has[2]:
        seen["image_dim"] = infos["image_embedder.linear_1.weight"].shape[1]
    for key, prefix in (("num_layers", _BLOCKS[0][0]), ("refiner_layers", _BLOCKS[1][0])):
        said = ours.get(key, stated.get({"num_layers": "num_layers", "refiner_layers": "num_refiner_layers"}[key]))
        counted = len({k.removeprefix(prefix).split(".")[0] for k in infos if k.startswith(prefix)})
        seen[key] = max(counted, said if isinstance(said, int) and 0 < said <= 1000 else 0)
    rope = ours.get("rope_dims") or stated.get("rope_axes_dim") or stated.get("rope_dim_list")
    if rope is None and head != HUNYUAN_VARIANTS["hunyuan-1.5"].head_dim:
        raise InDoubtError(
            f"{file}: heads of {head} and no config.json that says rope_axes_dim; expected one beside it"
        )
    if rope is not None:
        seen["rope_dims"] = tuple(rope)
    if any(role(k) == "camera" for k in infos):
        seen["camera"] = "branch"
    seen["motion"] = any(role(k) == "motion" for k in infos)
    action = infos.get("time_embed.action_embedder.linear_1.weight")
    seen["actions"] = action.shape[1] if action is not None else 0
    seen["meanflow"] = "time_embed.timestep_embedder_r.linear_1.weight" in infos
    said = {k: v for k, v in ours.items() if k in ("text_mode", "camera", "camera_share", "legacy_prope_cache", "eps")}
    try:
        return HunyuanConfig(**{**said, **seen})
    except (WorldlineError, TypeError) as error:
        raise KeysError(f"{file}: {error}") from error


def expected_shapes(config: HunyuanConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of our model, made without memory."""
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in HunyuanModel(config).state_dict().items()}


def explain(
    source: Source, group: str, naming: str, stated: Mapping[str, Any], file: str, licence: str | None
) -> tuple[Source, dict[str, str], CheckpointReport]:
    """The source under our names, our name -> its name, and what it is."""
    sets = tuple(
        WeightSet(name, len(infos), sum(i.nbytes for i in infos.values()), OTHER_NETS.get(name) or _what(name, infos))
        for name, infos in source.groups.items()
    )
    if naming == "original":
        source = InOurNames(source, group)
        names = {k: k for k in source.groups[group]}
    else:
        names = {keymaps.unwrap(k): k for k in source.groups[group]}
    infos = {k: source.groups[group][v] for k, v in names.items()}
    config = config_of(infos, stated, file)
    expected = expected_shapes(config)
    roles = Counter(str(role(k)) for k in names if k in expected)
    steered = naming == "original" and bool({"camera", "action"} & set(roles))
    plain = dataclasses.replace(
        config, camera="none", motion=False, actions=0, text_mode="joint", legacy_prope_cache=False
    )
    published = {v: k for k, v in HUNYUAN_VARIANTS.items()}
    ours = stated.get("kind") == "hunyuan15"
    layout = "worldline" if ours else "diffusers" if naming == "diffusers" else "original HunyuanVideo-1.5"
    layout, terms = _owner(file, roles) if steered and not ours else (layout, LICENCE)
    report = CheckpointReport(
        file=file,
        container=source.container,
        family="HunyuanVideo-1.5",
        layout=layout,
        variant=published.get(plain),
        config=config,
        heads_known=True,
        sets=sets,
        chosen=group,
        tensors=len(infos),
        parameters=sum(i.count for i in infos.values()),
        nbytes=sum(i.nbytes for i in infos.values()),
        dtypes=dict(Counter(i.dtype for i in infos.values())),
        roles=dict(roles),
        wrappers=tuple(sorted({word for key in names.values() for word in keymaps.wrappers(key)})),
        unknown=tuple(sorted(names[k] for k in names if k not in expected)),
        missing=tuple(sorted(set(expected) - set(names))),
        misshapen=tuple(
            f"{k}: {list(i.shape)}, expected {list(expected[k])}"
            for k, i in sorted(infos.items())
            if k in expected and i.shape != expected[k]
        ),
        licence=licence or terms,
        extras=source.extras,
        notes=NOTES if steered else (),
    )
    return source, {k: names[k] for k in expected if k in names}, report


# HY-WorldPlay's folders: its own causal and bidirectional models, by reinforcement, and distilled.
WORLDPLAY_FOLDERS = ("bidirectional_model", "ar_model", "ar_rl_model", "ar_distilled_action_model")


def _owner(file: str, roles: Mapping[str, int]) -> tuple[str, str]:
    """Layout and terms of a file with a camera or actions: by its folder, else by its parts. Only HY-WorldPlay trained both,
    but minWM goes on from its weights, too."""
    if file.split("/")[0] in WORLDPLAY_FOLDERS:
        return "HY-WorldPlay, HunyuanVideo-1.5", f"{WORLDPLAY_TERMS_8B}; {LICENCE}"
    if "action" in roles:
        return "HY-WorldPlay or minWM, HunyuanVideo-1.5", f"{LICENCE}; HY-WorldPlay's own, where it is from there"
    return "minWM, HunyuanVideo-1.5", LICENCE


def _what(group: str, infos: Collection[str]) -> str:
    if which_naming(infos) is None:
        return "not weights of this family"
    return "EMA weights" if group in EMA_SETS else "weights"


NOTES = (
    "its causal stages (AR, ODE, CD, DMD) run with the prompt apart: set text_mode decoupled; its bidirectional stage is joint",
    "minWM's causal DMD weights were made with rotated keys in the camera's cache: legacy_prope_cache reproduces that",
    "action labels (9 translation + rotation, 0 to 80) go in as cameras.actions = sinusoidal_embedding(label, 256); where none "
    "are given they are read off the camera's motion",
)


def _own_config(config: HunyuanConfig, names: Collection[str]) -> dict[str, Any]:
    return {"kind": "hunyuan15", "config": dataclasses.asdict(config)}


def _diffusers_config(config: HunyuanConfig, names: Collection[str]) -> dict[str, Any]:
    return {
        "_class_name": "HunyuanVideo15Transformer3DModel",
        "in_channels": 2 * config.in_channels + 1,
        "out_channels": config.out_channels,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.num_layers,
        "num_refiner_layers": config.refiner_layers,
        "mlp_ratio": config.ffn_dim / config.dim,
        "patch_size": config.patch_size[1],
        "patch_size_t": config.patch_size[0],
        "qk_norm": "rms_norm",
        "text_embed_dim": config.text_dim,
        "text_embed_2_dim": config.byt5_dim,
        "image_embed_dim": config.image_dim,
        "rope_theta": config.rope_theta,
        "rope_axes_dim": list(config.rope_dims),
        "use_meanflow": config.meanflow,
    }


def _original_config(config: HunyuanConfig, names: Collection[str]) -> dict[str, Any]:
    return {
        "_class_name": "HunyuanVideo_1_5_DiffusionTransformer",
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "hidden_size": config.dim,
        "heads_num": config.num_heads,
        "mm_double_blocks_depth": config.num_layers,
        "mm_single_blocks_depth": 0,
        "mlp_width_ratio": config.ffn_dim / config.dim,
        "patch_size": list(config.patch_size),
        "rope_dim_list": list(config.rope_dims),
        "rope_theta": config.rope_theta,
        "text_states_dim": config.text_dim,
        "use_meanflow": config.meanflow,
    }


TARGETS: dict[str, Target] = {
    "worldline": Target(lambda name: name, "model.safetensors", _own_config),
    "diffusers": Target(_diffusers_name, "diffusion_pytorch_model.safetensors", _diffusers_config),
    "hunyuan": Target(original_of, "diffusion_pytorch_model.safetensors", _original_config, _original),
}
