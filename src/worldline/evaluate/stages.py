"""The stages of one conversion as models of the replay bench, so that all are measured on the same episodes.

A causal stage is played as a stream is: chunk by chunk, a control reaching it as it comes. A bidirectional one makes a whole
clip at once and needs all of its controls before, so it is played on the *opening* of an episode, as long as its own
clips; for every other stage the opening is cut from what it played. Both take the cameras that the keys ask for, as live
play does, never the simulator's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from worldline.evaluate.adapter import ModelInfo
from worldline.evaluate.player import Player, nominal_path, to_uint8
from worldline.evaluate.runner import Plan, Progress, clip_path, evaluate
from worldline.evaluate.score import Score
from worldline.evaluate.store import read_clip
from worldline.evaluate.suites import FPS
from worldline.schema import Controls, WorldlineError

if TYPE_CHECKING:
    from worldline.evaluate.truth import Truth


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table. label: unique, such as `dmd@2`; stage: whose weights; about: how it is sampled; player: made when
    it is needed; rows: controls a step takes; clip: pixel frames after the start that a bidirectional stage makes at once, 0: a
    causal one; weights: hash of all that decides its output."""

    label: str
    stage: str
    about: str
    weights: str
    player: Callable[[], Player]
    rows: int = 4
    clip: int = 0


@dataclass(frozen=True)
class Setting:
    """What all contestants share: picture size and the speed of walking."""

    height: int
    width: int
    walk_units_per_frame: float


class PlayerAdapter:
    """A stage's player behind the three methods. Its episode must be told first (`expect`): a whole clip takes all controls
    at once."""

    def __init__(self, contestant: Contestant, setting: Setting) -> None:
        self.contestant, self.setting = contestant, setting
        self._player: Player | None = None
        self._truth: Truth | None = None
        self._pieces: Generator[np.ndarray, None, None] | None = None
        self._at = 0

    @property
    def player(self) -> Player:
        """Loaded at the first episode: nothing is where all of them are there."""
        if self._player is None:
            self._player = self.contestant.player()
        return self._player

    def info(self) -> ModelInfo:
        """The stage's facts."""
        facts = {"stage": self.contestant.stage, "sampling": self.contestant.about}
        return ModelInfo(
            name=self.contestant.label, fps=FPS, height=self.setting.height, width=self.setting.width,
            frames_per_step=self.contestant.rows, weights=self.contestant.weights, facts=facts,
        )  # fmt: skip

    def expect(self, truth: Truth) -> None:
        """The episode that follows."""
        self._truth = truth

    def reset(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """Start the stream; a bidirectional stage has made its whole clip when this returns the start."""
        if self._truth is None:
            raise WorldlineError("reset before expect; tell the stage its episode first")
        controls, rows, clip = self._truth.case.controls, self.contestant.rows, self.contestant.clip
        if clip and len(controls) > clip:
            raise WorldlineError(
                f"{self.contestant.label} makes clips of {clip} frames, the episode has {len(controls)}; cut it (Plan.frames)"
            )
        padded = Controls.concat([controls, Controls.still(-len(controls) % rows)])
        path = nominal_path(padded, self._truth.cameras.K[0], self.setting.walk_units_per_frame)
        self._at, self._pieces = 0, self.player.stream(image[None], [path], [prompt], seed)
        return next(self._pieces)[0, 0]

    def step(self, controls: Controls) -> np.ndarray:
        """The next chunk."""
        if self._pieces is None or self._truth is None:
            raise WorldlineError("step before reset; call reset(image, prompt, seed) first")
        told = self._truth.case.controls[self._at : self._at + len(controls)]
        self._at += len(controls)
        if not (
            np.array_equal(told.move, controls.move[: len(told)])
            and np.array_equal(told.look, controls.look[: len(told)])
        ):
            raise WorldlineError("step was given other controls than the episode's; expected those of `expect`")
        return next(self._pieces)[0]


class _Shown:
    """A model whose frames are there before it is asked."""

    def __init__(self, info: ModelInfo) -> None:
        self._info, self._at = info, 0
        self._frames: np.ndarray = np.zeros(0)

    def info(self) -> ModelInfo:
        """Whose frames they are."""
        return self._info

    def reset(self, image: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """The first frame."""
        self._at = 1
        return self._frames[0]

    def step(self, controls: Controls) -> np.ndarray:
        """The frames that follow; the last one again where a chunk reaches beyond the end."""
        wanted = np.arange(self._at, self._at + len(controls)).clip(max=len(self._frames) - 1)
        self._at += len(controls)
        return self._frames[wanted]


class Opening(_Shown):
    """The first frames of what a stage has played already."""

    def __init__(self, info: ModelInfo, played: Plan) -> None:
        super().__init__(info)
        self._clips = {c.id: clip_path(played.out, c) for c in played.cases()}

    def expect(self, truth: Truth) -> None:
        """The episode that follows."""
        self._frames = read_clip(self._clips[truth.case.id])


class Decoded(_Shown):
    """The truth through the codec: the ceiling of every stage."""

    def __init__(self, info: ModelInfo, player: Callable[[], Player]) -> None:
        super().__init__(info)
        self._make = player
        self._player: Player | None = None

    def expect(self, truth: Truth) -> None:
        """The episode that follows."""
        import torch

        self._player = played = self._player or self._make()
        frames, missing = truth.frames, -(len(truth.frames) - 1) % played.codec.grid.stride
        whole = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else frames
        video = torch.from_numpy(whole).to(played.device).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
        with torch.no_grad(), torch.autocast(played.device.type, torch.bfloat16, enabled=played.bf16):
            self._frames = to_uint8(played.codec.decode(played.codec.encode(video)))[0]


Rows = dict[str, dict[str, Score]]


@dataclass
class Measured:
    """Of one contestant: rows (model, codec, references) on openings, and on whole episodes where it is causal."""

    contestant: Contestant
    opening: Rows | None = None
    whole: Rows | None = None


def opening_frames(contestants: list[Contestant]) -> int:
    """Controls of an opening: the shortest clip of a bidirectional stage; 0 where there is none."""
    return min([c.clip for c in contestants if c.clip] or [0])


def part(plan: Plan, label: str, opening: int = 0) -> Plan:
    """The plan of one contestant's whole episodes, or of their openings of so many controls."""
    return replace(plan, out=plan.out / "stages" / (f"{label}-opening" if opening else label), frames=opening)


def measure_stages(
    contestants: list[Contestant], setting: Setting, plan: Plan, progress: Progress | None = None
) -> list[Measured] | None:
    """Play and measure what is missing, every contestant in folders of its own under `plan.out`; None where other shards
    have episodes left. Raises WorldlineError where no contestant is causal."""
    if all(c.clip for c in contestants):
        raise WorldlineError(f"{[c.label for c in contestants]}: expected at least one causal stage to compare with")
    frames = opening_frames(contestants)
    found: list[Measured] = []
    for contestant in contestants:
        model, told = PlayerAdapter(contestant, setting), _about(contestant.label, progress)
        whole, opening = part(plan, contestant.label), part(plan, contestant.label, frames)
        if contestant.clip:
            found.append(Measured(contestant, opening=evaluate(model, opening, told)))
            continue
        measured = Measured(contestant, whole=evaluate(model, whole, told))
        if frames and measured.whole is not None:
            measured.opening = evaluate(Opening(model.info(), whole), opening)
        found.append(measured)
    info = ModelInfo(
        name="codec", fps=FPS, height=setting.height, width=setting.width, frames_per_step=4, weights="codec"
    )
    for span in dict.fromkeys((0, frames)):
        which = [m.opening if span else m.whole for m in found]
        ceiling = evaluate(Decoded(info, contestants[0].player), part(plan, "codec", span))
        if ceiling is None or any(
            rows is None for m, rows in zip(found, which, strict=True) if span or not m.contestant.clip
        ):
            return None
        for rows in which:
            if rows is not None:
                rows["codec"] = ceiling["model"]
    return found


def _about(label: str, progress: Progress | None) -> Progress | None:
    """Progress that says whose episode was done."""
    return None if progress is None else lambda done, total, name: progress(done, total, f"{label}  {name}")
