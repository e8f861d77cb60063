"""Names of the same tensors in different projects: tables of pairs, read in both directions, so every map is a bijection.

A key is `[blocks.N.]stem[.weight|.bias]`; a naming is a table from our stems (diffusers' names) to its own. Around the
names stand wrappers: words that FSDP, torch.compile and trainers put before or between them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["base", "camera", "action", "motion", "image"]

KEY = re.compile(r"(blocks\.\d+\.)?(.*?)(\.weight|\.bias)?", re.DOTALL)
INNER_WRAPPERS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
OUTER_WRAPPERS = frozenset({"model", "module", "diffusion_model", "net", "transformer"})

# (ours, original Wan); block stems are written under "blocks.".
TOP = (
    ("patch_embedding", "patch_embedding"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("proj_out", "head.head"),
    ("scale_shift_table", "head.modulation"),
)
BLOCK = (
    ("blocks.scale_shift_table", "blocks.modulation"),
    ("blocks.norm2", "blocks.norm3"),  # Wan counts its norms in another order than it applies them
    ("blocks.ffn.net.0.proj", "blocks.ffn.0"),
    ("blocks.ffn.net.2", "blocks.ffn.2"),
    *(
        (f"blocks.{ours}.{a}", f"blocks.{wan}.{b}")
        for ours, wan in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for a, b in (
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "o"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    ),
)
IMAGE = (
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("blocks.attn2.add_k_proj", "blocks.cross_attn.k_img"),
    ("blocks.attn2.add_v_proj", "blocks.cross_attn.v_img"),
    ("blocks.attn2.norm_added_k", "blocks.cross_attn.norm_k_img"),
)
PROPE = "blocks.attn1.prope_o"
ACTION = ("condition_embedder.action_embedder.linear_1", "condition_embedder.action_embedder.linear_2")
MOTION = ("condition_embedder.motion_embedder.linear_1", "condition_embedder.motion_embedder.linear_2")
CAMERA = (
    PROPE,
    "ray_embedding",
    *(f"camera_embedder.{name}" for name in ("rows.linear_1", "rows.linear_2", "which")),
    "blocks.norm3",
    *(f"blocks.attn3.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
)

ROLE_OF_STEM: dict[str, Role] = {
    **{ours: "base" for ours, _ in TOP + BLOCK},
    **{ours: "image" for ours, _ in IMAGE},
    **dict.fromkeys(CAMERA, "camera"),
    **dict.fromkeys(ACTION, "action"),
    **dict.fromkeys(MOTION, "motion"),
}


def split(key: str) -> tuple[str, str, str]:
    """A key -> (`blocks.N.` or nothing, stem, `.weight`, `.bias` or nothing). Block stems begin with `blocks.`."""
    match = KEY.fullmatch(key)
    assert match is not None  # the middle group takes anything
    block, stem, leaf = match[1] or "", match[2], match[3] or ""
    return block, "blocks." + stem if block else stem, leaf


def join(block: str, stem: str, leaf: str) -> str:
    """The inverse of `split`."""
    return block + (stem.removeprefix("blocks.") if block else stem) + leaf


def role(key: str) -> Role | None:
    """What a tensor under our name is for; None for a name that we do not know."""
    return ROLE_OF_STEM.get(split(key)[1])


@dataclass(frozen=True)
class Naming:
    """One project's names for the tensors, as pairs (ours, theirs)."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    _theirs: dict[str, str] = field(init=False, repr=False, compare=False)
    _ours: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        theirs, ours = dict(self.pairs), {b: a for a, b in self.pairs}
        assert len(theirs) == len(ours) == len(self.pairs), f"naming {self.name} is no bijection"
        object.__setattr__(self, "_theirs", theirs)
        object.__setattr__(self, "_ours", ours)

    def theirs(self, ours: str) -> str | None:
        """This project's name of one of our keys, or None where it has none."""
        return _renamed(ours, self._theirs)

    def ours(self, theirs: str) -> str | None:
        """Our name of one of this project's keys, or None where we know none."""
        return _renamed(theirs, self._ours)


def _renamed(key: str, table: dict[str, str]) -> str | None:
    block, stem, leaf = split(key)
    renamed = table.get(stem)
    return None if renamed is None else join(block, renamed, leaf)


def _same(stems: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((stem, stem) for stem in stems)


_BASE = _same(tuple(ours for ours, _ in TOP + BLOCK))
DIFFUSERS = Naming("diffusers", _BASE + _same(tuple(ours for ours, _ in IMAGE)))
OURS = Naming("worldline", _BASE + _same(CAMERA + ACTION + MOTION))
WAN = Naming("wan", (*TOP, *BLOCK, *IMAGE, (PROPE, "blocks.self_attn.prope_o")))  # with minWM's camera, legacy and v0.2
WORLDPLAY = Naming("worldplay", (*_BASE, (PROPE, "blocks.attn1.to_out_prope.0"), *_same(ACTION)))
NAMINGS = (DIFFUSERS, OURS, WAN, WORLDPLAY)  # where two explain a file equally, the first is meant


@dataclass(frozen=True)
class Layout:
    """A naming in its wrapping: the set of weights in the file, words before every key, a word inside every block."""

    name: str
    title: str
    naming: Naming
    group: str = ""
    outer: tuple[str, ...] = ()
    in_block: tuple[str, ...] = ()

    def theirs(self, ours: str) -> str | None:
        """Our key as it stands in such a file, or None where it has no place there."""
        bare = self.naming.theirs(ours)
        if bare is None:
            return None
        block, stem, leaf = split(bare)
        block += "".join(word + "." for word in self.in_block) if block else ""
        return "".join(word + "." for word in self.outer) + join(block, stem, leaf)

    def ours(self, theirs: str) -> str | None:
        """Our name of a key of such a file."""
        return self.naming.ours(unwrap(theirs))


_FSDP = "_fsdp_wrapped_module"
_SELF_FORCING = "Self-Forcing, Causal-Forcing or CausVid"
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("diffusers", "diffusers", DIFFUSERS),
        Layout("worldline", "worldline", OURS),
        Layout("wan", "original Wan", WAN),
        Layout("comfyui", "original Wan, single file", WAN, "", ("model", "diffusion_model")),
        Layout("self-forcing", _SELF_FORCING, WAN, "generator", ("model",)),
        Layout("self-forcing-ema", _SELF_FORCING, WAN, "generator_ema", ("model",)),
        Layout("self-forcing-fsdp", _SELF_FORCING, WAN, "generator", ("model", _FSDP), (_FSDP,)),
        Layout("self-forcing-ema-fsdp", _SELF_FORCING, WAN, "generator_ema", ("model", _FSDP), (_FSDP,)),
        Layout("minwm-v0.2", "minWM v0.2 export", WAN, "model"),
        Layout("worldplay", "HY-WorldPlay 5B", WORLDPLAY, "generator", ("model",)),
        Layout("worldplay-fsdp", "HY-WorldPlay 5B", WORLDPLAY, "generator", ("model", _FSDP), (_FSDP,)),
    )
}


def unwrap(key: str) -> str:
    """A key without wrapper words: inner ones anywhere, outer ones in front."""
    words = [word for word in key.split(".") if word not in INNER_WRAPPERS]
    while len(words) > 1 and words[0] in OUTER_WRAPPERS:
        words.pop(0)
    return ".".join(words)


def wrappers(key: str) -> tuple[str, ...]:
    """The wrapper words of a key, in order."""
    words, outer = key.split("."), True
    found = []
    for i, word in enumerate(words):
        outer = outer and i < len(words) - 1 and (word in OUTER_WRAPPERS or word in INNER_WRAPPERS)
        if outer or word in INNER_WRAPPERS:
            found.append(word)
    return tuple(found)
