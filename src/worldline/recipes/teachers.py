"""Transformers of diffusers pipelines as frozen roles of a stage."""

from __future__ import annotations

from functools import lru_cache

import torch

from worldline.models.diffusers_teacher import Described, DiffusersTeacher, TeacherError, describe
from worldline.recipes.schema import Recipe, StageSection


def described(recipe: Recipe, section: StageSection) -> dict[str, Described]:
    """Role -> what its folder says, for every such role of a stage. Loads nothing.

    Raises TeacherError where the transformer cannot answer for this recipe: no such family, other latents or prompts than
    the run's, one noise level a clip where start frames are given.
    """
    config, found = recipe.model.config(), {}
    for role, named in section.foreign().items():
        teacher = describe(named.diffusers)
        if not teacher.family.complete:
            raise TeacherError(f"{role}: {teacher.name} needs more than a prompt; use it from a program, with inputs=")
        channels = teacher.config.get("in_channels", config.in_channels)
        if channels != config.in_channels:
            raise TeacherError(
                f"{role}: {named.diffusers} takes latents of {channels} channels, this model's have {config.in_channels}; "
                "expected a transformer of the same codec, without image inputs"
            )
        if teacher.text_width not in (None, config.text_dim):
            raise TeacherError(
                f"{role}: {named.diffusers} takes prompts of width {teacher.text_width}, this run's have {config.text_dim}; "
                "expected a transformer of the same text encoder"
            )
        if named.per_frame and not teacher.family.per_frame:
            raise TeacherError(f"{role}: {teacher.name} takes one noise level a clip; leave per_frame off")
        per_frame = teacher.per_frame if named.per_frame is None else named.per_frame
        if recipe.rollout.prefix and not per_frame:
            raise TeacherError(
                f"{role}: {named.diffusers} takes one noise level a clip, rollout.prefix is {recipe.rollout.prefix} (given "
                "frames are clean); set per_frame: true if its weights know clean first frames, or rollout.prefix=0"
            )
        found[role] = teacher
    return found


def teachers(section: StageSection, *, half: bool) -> dict[str, DiffusersTeacher]:
    """Those roles, loaded and frozen; half: in bf16."""
    dtype = torch.bfloat16 if half else torch.float32
    return {
        role: DiffusersTeacher.from_pretrained(named.diffusers, dtype=dtype, per_frame=named.per_frame)
        for role, named in section.foreign().items()
    }


@lru_cache(maxsize=16)
def fingerprint(folder: str) -> str:
    """Of the transformer in a folder."""
    return describe(folder).fingerprint()
