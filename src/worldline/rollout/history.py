"""What a chunk may see of the past beyond its window: policies that pick single latent frames again.

A frame that was picked is *recalled*: its clean latent is encoded anew, alone (it attends to itself and the prompt), and its keys
and values stand beside the window's. So an entry depends on its own frame, and only frames that are new to the memory are
encoded. Which frames a chunk recalls is decided when its cameras are known, from what the chunk before it recalled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.functional.overlap import fov_overlap
from worldline.schema import Cameras, WorldlineError

Held = tuple[int, ...]  # latent frames by memory slot


class HistoryPolicy(Protocol):
    """Picks what a chunk recalls. slots: most frames at a time; archive: latent frames back that may be picked; horizon: how
    many latent frames before its chunk's end a recalled frame stands at most, None: where it was."""

    @property
    def slots(self) -> int: ...
    @property
    def archive(self) -> int: ...
    @property
    def horizon(self) -> int | None: ...

    def choose(self, held: Held, frames: Sequence[int], past: Cameras, coming: Cameras) -> Held:
        """held: what the chunk before recalled; frames: those that may be recalled, in order; past: their cameras, and coming:
        the chunk's, batch 1, on the host -> what the chunk recalls. Must be a function of these alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class CameraMemory:
    """Recall the frames whose cameras saw most of what the coming cameras will see (as HY-WorldPlay does).

    A frame's worth is the share of the chunk's frusta that lies in its own (`functional.overlap`), between depths near and far.
    One that is held gives its slot to another only where that one is worth more by `margin`, and at most `changes` slots
    change a chunk: each costs a pass over one latent frame. Of equals the older is taken, it has drifted less.
    """

    slots: int = 4
    margin: float = 0.1  # of worth
    changes: int = 2
    near: float = 0.1  # model units, those of the poses
    far: float = 2.0
    points: int = 256  # of a frustum, that are looked at
    horizon: int | None = None
    archive: int = 1024

    def __post_init__(self) -> None:
        counts = (self.slots, self.changes, self.points, self.archive, 1 if self.horizon is None else self.horizon)
        if min(counts) < 1 or self.margin < 0 or not 0 < self.near < self.far or self.archive < self.slots:
            raise WorldlineError(
                f"{self}: expected slots, changes, points, archive and horizon of at least 1, no more slots than archive, "
                "margin >= 0 and 0 < near < far"
            )

    def choose(self, held: Held, frames: Sequence[int], past: Cameras, coming: Cameras) -> Held:
        """See HistoryPolicy."""
        worth = fov_overlap(
            coming.w2c[0], coming.K[0], past.w2c[0], past.K[0], near=self.near, far=self.far, points=self.points
        )
        return self.replaced(held, dict(zip(frames, worth.mean(dim=0).tolist(), strict=True)))

    def replaced(self, held: Held, worth: dict[int, float]) -> Held:
        """held, with empty slots filled and the least worthy replaced by those that are worth more."""
        found = list(held)
        others = sorted((f for f in worth if f not in held), key=lambda f: (-worth[f], f))
        for frame in others[: self.changes]:
            if len(found) < self.slots:
                found.append(frame)
                continue
            least = min(range(len(found)), key=lambda i: (worth[found[i]], -found[i]))
            if worth[frame] <= worth[found[least]] + self.margin:
                break
            found[least] = frame
        return tuple(found)


def recallable(visibility: Visibility, archive: int, held: Held, start: int, stop: int) -> list[int]:
    """Latent frames that a chunk [start, stop) may recall: committed, no sink, out of its window, of the last `archive` such
    or held already."""
    if visibility.window is None:
        return []
    first, last = visibility.sink, min(start, stop - visibility.window)
    recent = range(max(first, last - archive), last)
    return [*(f for f in sorted(held) if f < recent.start), *recent]


def recalled_place(policy: HistoryPolicy, frame: int, stop: int) -> int:
    """The position of a recalled frame for a chunk that ends before `stop`: its own index, or `horizon` before the end."""
    return frame if policy.horizon is None else max(frame, stop - policy.horizon)


def recalled(policy: HistoryPolicy, visibility: Visibility, cameras: Cameras) -> list[list[Held]]:
    """What a stream would recall in every frame's chunk of whole clips with these cameras, [B][T]."""
    cameras = cameras.to("cpu")
    T, found = cameras.w2c.shape[1], []
    for b in range(len(cameras.w2c)):
        own, held = cameras.rows([b]), Held()
        row: list[Held] = []
        while len(row) < T:
            start, stop = visibility.chunk_bounds(len(row))
            frames = recallable(visibility, policy.archive, held, start, stop)
            if frames:
                held = policy.choose(held, frames, own[frames], own[start:stop])
            row += [held] * (stop - start)
        found.append(row[:T])
    return found


def memory_mask(visibility: Visibility, held: list[list[Held]], frames: Sequence[int]) -> Tensor:
    """bool [B, A + 2T, A + 2T] over [recalled frames alone | clean | noisy]: a recalled frame sees itself; clean and noisy
    chunks see, beside what teacher forcing shows them, what they recall. held: [B][T], as of `recalled`."""
    A, T = len(frames), len(held[0])
    at = {f: i for i, f in enumerate(frames)}
    mask = torch.zeros(len(held), A + 2 * T, A + 2 * T, dtype=torch.bool)
    mask[:, :A, :A] = torch.eye(A, dtype=torch.bool)
    mask[:, A:, A:] = visibility.teacher_forcing_mask(T)
    for b, row in enumerate(held):
        for t, seen in enumerate(row):
            columns = [at[f] for f in seen]
            mask[b, A + t, columns] = mask[b, A + T + t, columns] = True
    return mask
