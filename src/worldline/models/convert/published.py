"""Published Wan models by their sizes, and under what terms families of checkpoints are published."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from worldline.models.wan import WAN_VARIANTS, WanConfig

_T2V_1B = WAN_VARIANTS["wan2.1-t2v-1.3b"]
_T2V_14B = dataclasses.replace(_T2V_1B, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

# The first name whose sizes fit is the name that is shown.
PUBLISHED: dict[str, WanConfig] = {
    "wan2.1-t2v-1.3b": _T2V_1B,
    "wan2.2-ti2v-5b": WAN_VARIANTS["wan2.2-ti2v-5b"],
    "wan2.1-t2v-14b (or an expert of wan2.2-t2v-a14b)": _T2V_14B,
    "wan2.1-i2v-14b (or an expert of wan2.2-i2v-a14b)": dataclasses.replace(_T2V_14B, in_channels=36),
}

APACHE = "Apache-2.0"
WORLDPLAY_TERMS = "Tencent HY-WorldPlay community licence (territory, user and output limits); base Apache-2.0"
UNSAID = "not stated in the file"


def licence_of(layout: str, camera: bool) -> str:
    """What is known of a layout's terms. A file rarely says it, and one layout can hold weights of several owners."""
    if layout == "worldplay":
        return WORLDPLAY_TERMS
    if layout == "wan" and not camera:
        return f"{UNSAID}; Wan's own weights are {APACHE}, fine-tunes may not be"
    if layout in ("self-forcing", "minwm"):
        return f"{UNSAID}; Self-Forcing, Causal-Forcing and minWM publish {APACHE}, CausVid CC-BY-NC-SA-4.0"
    return UNSAID


NOTES: dict[str, tuple[str, ...]] = {
    "worldplay": (
        "its action labels (9 translation + rotation, 0 to 80) go in as cameras.actions = sinusoidal_embedding(label, "
        "width of the actions); where none are given they are read off the camera's motion",
        "its camera branch has our names and form; its outputs were not compared with HY-WorldPlay's own",
    ),
    "minwm": ("minWM's own Wan inference sets fx = fy = 0.5; it was trained with the intrinsics of its data",),
}

Maturity = Literal["bidirectional", "causal", "few-step"]
"""How far a world model is: it sees whole clips, or makes chunk after chunk, in many steps or in few."""

# How projects name files and folders of each, asked in this order: HY-WorldPlay's ar_distilled_action_model is a few-step one.
_WORDS: dict[Maturity, str] = {
    "few-step": r"dmd|distill|(^|[_-])(ode|cd)([_-]|$)|\d-?steps?([_-]|$)|(self|causal)[_-]forcing|causvid|longvideo",
    "causal": r"(^|[_-])ar([_-]|$)|teacher[_-]forcing|(^|[_-])tf([_-]|$)",
    "bidirectional": r"bidirectional|(^|[_-])(bi|sft|camera|t2v|i2v|ti2v)([_-]|$)",
}


def maturity_of(path: Path) -> Maturity | None:
    """What the name of a file, or of the nearest of three folders around it, says its model is; None where none says it."""
    for name in (path.stem if path.suffix else path.name, *(parent.name for parent in list(path.parents)[:3])):
        said = next((maturity for maturity, words in _WORDS.items() if re.search(words, name.lower())), None)
        if said is not None:
            return said
    return None
