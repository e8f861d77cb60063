"""The memory of a rollout: clean latents that were committed, and the keys and values of those that are recalled.

What is in the caches' memory slots is a function of what was committed and of the coming chunk's cameras, never of chunks that
were drawn and given up: a choice starts from what the last committed chunk recalled, whose entries are kept until the next
commit. So a chunk may be drawn again under other cameras, and a walk replayed, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldline.functional.masks import Visibility
from worldline.models.backbone import Backbone, TextContext
from worldline.nn.kv_cache import FrameCache, KVCache, Stream
from worldline.rollout.history import Held, HistoryPolicy, recallable, recalled_place
from worldline.rollout.positions import moved_key
from worldline.schema import Cameras, WorldlineError


@dataclass(frozen=True)
class _Choice:
    """What the chunk [start, stop) recalls, by sample, under its cameras; coming: these on the host."""

    start: int
    stop: int
    cameras: Cameras
    coming: Cameras
    held: tuple[Held, ...]


Entry = tuple[int, int, int]  # cache (of a prompt), sample, latent frame


class Memory:
    """Of one loop; `frames` are those that may be recalled later, their latents on the device, their cameras on the host."""

    def __init__(self, policy: HistoryPolicy, visibility: Visibility) -> None:
        self.policy, self.visibility = policy, visibility
        self.held: tuple[Held, ...] = ()  # what the last committed chunk recalled, by sample
        self.choice: _Choice | None = None
        self._latents: dict[int, Tensor] = {}  # [B, 1, C, H, W], or of fewer samples, of which these are copies
        self._cameras: Cameras | None = None  # [B, frames]
        self._entries: dict[Entry, FrameCache] = {}
        self._shown: object = None  # what the caches' slots hold
        self.encoded = 0  # passes over a latent frame so far

    def recall(self, start: int, stop: int, cameras: Cameras | None, host: Cameras | None = None) -> None:
        """Choose what the chunk [start, stop) sees again. host: its cameras where no device has to be waited for."""
        made = self.choice
        if made is not None and made.start == start and made.stop == stop and made.cameras is cameras:
            return
        if cameras is None:
            raise WorldlineError(
                "a chunk without cameras; a memory that is chosen by them needs cameras for every chunk"
            )
        coming = (cameras if host is None else host).to("cpu")
        samples = range(len(coming.w2c))
        before = self.held or tuple(Held() for _ in samples)
        held = tuple(self._chosen(b, before[b], coming, start, stop) for b in samples)
        self.choice = _Choice(start, stop, cameras, coming, held)
        wanted = {(b, f) for row in (before, held) for b, frames in enumerate(row) for f in frames}
        self._entries = {key: entry for key, entry in self._entries.items() if key[1:] in wanted}

    def _chosen(self, sample: int, held: Held, coming: Cameras, start: int, stop: int) -> Held:
        frames = recallable(self.visibility, self.policy.archive, held, start, stop)
        if not frames or self._cameras is None:
            return held
        known = {f: i for i, f in enumerate(self._latents)}
        past = self._cameras.rows([sample])[[known[f] for f in frames]]
        return self.policy.choose(held, frames, past, coming.rows([sample]))

    def show(self, model: Backbone, texts: Sequence[TextContext], caches: Sequence[KVCache], shift: int) -> None:
        """Have the caches hold what was chosen, at its places; encode what is new. shift: by how much the positions of the
        window lie before its indices."""
        choice = self.choice
        assert choice is not None, "nothing was chosen"
        count = min(len(held) for held in choice.held)
        later = tuple(
            tuple(recalled_place(self.policy, f, choice.stop) - shift - f for f in held[:count]) for held in choice.held
        )
        if (choice.held, later) == self._shown:
            return
        self._shown = None
        for number, (text, cache) in enumerate(zip(texts, caches, strict=True)):
            for frame in dict.fromkeys(f for held in choice.held for f in held):
                self._encode(model, text, number, frame)
            rows = [
                [self._keys(model, number, b, f, by) for f, by in zip(held, move, strict=False)]
                for b, (held, move) in enumerate(zip(choice.held, later, strict=True))
            ]
            streams = rows[0][0] if count else ()
            cache.remember({s: (_batch(rows, s, 0), _batch(rows, s, 1)) for s in streams}, count)
        self._shown = (choice.held, later)

    def _encode(self, model: Backbone, text: TextContext, number: int, frame: int) -> None:
        """Keys and values of a latent frame that sees itself, for the samples that lack them: always a pass of one frame, so
        that its numbers do not depend on what else is new."""
        assert self.choice is not None
        wanting = [b for b, held in enumerate(self.choice.held) if frame in held]
        missing = [b for b in wanting if (number, b, frame) not in self._entries]
        if not missing or self._cameras is None:
            return
        every, latent = len(missing) == len(self.choice.held), self._latents[frame]
        x = latent[[b % len(latent) for b in missing]]
        cameras = self._cameras.rows(missing)[[list(self._latents).index(frame)]].to(x.device)
        found, at = FrameCache(), torch.full((1,), frame, device=x.device)
        sigma = torch.zeros(x.shape[:2], device=x.device)
        text = text if every else text.each(lambda y: y[missing])
        model(x, sigma, text, cameras=cameras, positions=at, cache=found)
        self.encoded += 1
        for i, b in enumerate(missing):
            self._entries[number, b, frame] = found.rows(slice(i, i + 1))

    def _keys(
        self, model: Backbone, number: int, sample: int, frame: int, later: int
    ) -> dict[Stream, tuple[Tensor, Tensor]]:
        """An entry's keys and values, `later` latent frames from where it was encoded."""
        blocks = self._entries[number, sample, frame].blocks
        if not later or self._cameras is None:
            return dict(blocks)
        camera = self._cameras.rows([sample])[[list(self._latents).index(frame)]]
        turn = moved_key(model.config, later, camera)
        return {
            s: (_turned(k, turn) if s[1] == "main" else k, v) for s, (k, v) in blocks.items()
        }  # the camera branch knows no positions

    def add(self, start: int, x0: Tensor) -> None:
        """Latents [B, n, C, H, W] from `start` on were committed; the next choice starts from what was chosen for them."""
        choice, n = self.choice, x0.shape[1]
        assert choice is not None, "a commit without a choice"
        self.held, self.choice = choice.held, None
        latents = {**self._latents, **{start + i: x0[:, i : i + 1] for i in range(n)}}
        joined = choice.coming if self._cameras is None else Cameras.cat([self._cameras, choice.coming], dim=1)
        # A window's frames leave it later than they come, and what is held may be older than the archive.
        oldest = start + n - (self.visibility.window or 0) - self.policy.archive
        kept = {f for held in self.held for f in held}
        stay = [i for i, f in enumerate(latents) if f >= oldest or f in kept]
        self._cameras = joined if len(stay) == len(latents) else joined[stay]
        numbers = list(latents)
        self._latents = {numbers[i]: latents[numbers[i]] for i in stay}
        self._entries = {key: entry for key, entry in self._entries.items() if key[2] in kept}

    def reanchor(self, model: Backbone, world: Tensor) -> None:
        """Move what is remembered to another world frame: world [B, 4, 4] maps old to new world points."""
        moved = {}
        for key, entry in self._entries.items():
            moved[key] = entry.fork()
            model.reanchor(moved[key], world[key[1] % len(world)][None])
        self._entries, self._shown, self.choice = moved, None, None
        if self._cameras is not None:
            old = self._cameras
            back = torch.linalg.inv(world.double().cpu())[:, None]
            self._cameras = Cameras((old.w2c.double() @ back).float(), old.K, old.motion, old.actions)

    def renew(self) -> None:
        """Forget all entries: they are made again, under other prompts, when they are next shown."""
        self._entries, self._shown = {}, None

    def fork(self, copies: int = 1) -> Memory:
        """An independent memory of the same; with `copies`, of so many continuations as one batch, copy after copy."""
        other = Memory(self.policy, self.visibility)
        other.held, other._latents, other.encoded = self.held * copies, dict(self._latents), self.encoded
        if copies == 1:
            other.choice, other._shown, other._cameras = self.choice, self._shown, self._cameras
            other._entries = dict(self._entries)
            return other
        B = len(self.held)
        other._cameras = None if self._cameras is None else self._cameras.tile(batch=copies)
        other._entries = {(c, b + i * B, f): entry for (c, b, f), entry in self._entries.items() for i in range(copies)}
        return other


def _batch(rows: list[list[dict[Stream, tuple[Tensor, Tensor]]]], stream: Stream, which: int) -> Tensor:
    """Samples of slots of entries -> [B, N, slots * S, Dh]."""
    return torch.cat([torch.cat([entry[stream][which] for entry in row], dim=2) for row in rows])


def _turned(k: Tensor, turn: Tensor) -> Tensor:
    """k [1, N, S, Dh] times turn [Dh, Dh], in fp32."""
    with torch.autocast(k.device.type, enabled=False):
        return (k.float() @ turn.to(k.device, torch.float32)).to(k.dtype)
