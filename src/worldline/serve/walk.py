"""What a player does to a world, as plain blocking calls: one thread at a time, no clock, no network."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldline.control.trajectories import parse as parse_trajectory
from worldline.schema import Controls, WorldlineError
from worldline.serve.protocol import MAX_PROMPT, MESSAGES_PER_S, PROMPT_MODES, Reset
from worldline.serve.recorder import RECORD_S
from worldline.serve.spool import Folder
from worldline.stream.engine import Engine
from worldline.stream.log import Prompt, PromptMode, SessionLog
from worldline.stream.session import Session

SLOTS = 4
UNDO = 0  # the slot of the moment before the last reset, rewind, slot or load
MAX_CHUNKS = 8192  # of a walk that is loaded: each costs a model call
MAX_LATENTS = 4000  # of a trajectory
UPLOADS = {"image": 8 * 2**20, "session": 64 * 2**20}  # bytes a file may have


@dataclass
class Moment:
    """A session and the name of the place where it began."""

    session: Session
    start: str | None

    def fork(self) -> Moment:
        """An independent copy."""
        return Moment(self.session.fork(), self.start)


@dataclass(frozen=True)
class Place:
    """Where a walk stands. picture: uint8 [H, W, 3]."""

    chunk: int
    frame: int
    prompt: str
    seed: int
    start: str | None
    slots: list[int]
    picture: np.ndarray


Act = tuple[Controls, Prompt | None]  # of one chunk, and the prompt that begins with it


@dataclass
class Script:
    """Controls that act instead of the player's."""

    id: int | None
    chunks: deque[Act]
    yields: bool  # whether the player's own input ends it


@dataclass
class Walk:
    """A session with its slots. Every change makes the new session first, so that a failure leaves the old one."""

    engine: Engine
    folder: Folder
    now: Moment | None = None
    slots: dict[int, Moment] = field(default_factory=dict)

    @property
    def session(self) -> Session:
        """The session in play."""
        if self.now is None:
            raise WorldlineError("no walk has begun; reset, with a start that this world has")
        return self.now.session

    def place(self) -> Place:
        """Where the walk stands."""
        assert self.now is not None
        session, chunk = self.session, self.chunk
        frame = chunk * self.engine.frames_per_chunk
        return Place(
            chunk, frame, session.prompt, session.log.seed, self.now.start, sorted(self.slots), session.last_frame
        )

    @property
    def chunk(self) -> int:
        """Chunks walked."""
        return (self.session.frame_index - 1) // self.engine.frames_per_chunk

    def reset(self, asked: Reset) -> Place:
        """A new walk; what is None is as it was."""
        source: np.ndarray | str | None
        if asked.image is not None:
            from PIL import Image

            source = np.asarray(Image.open(self.folder.find(asked.image, "png")).convert("RGB"))
            start, prompt = None, asked.prompt
        elif asked.start is not None or self.now is None:
            start = asked.start or next(iter(self.engine.starts), None)
            prompt, source = asked.prompt, start
        else:
            log = self.session.log
            start, source = self.now.start, log.image
            prompt = log.prompts[0].text if asked.prompt is None else asked.prompt
        seed = asked.seed if asked.seed is not None else (0 if self.now is None else self.session.log.seed)
        return self._go(Moment(self.engine.session(source, prompt, seed), start))

    def rewind(self, chunk: int) -> Place:
        """Back to the end of a chunk; 0 is the start."""
        if not 0 <= chunk <= self.chunk:
            raise WorldlineError(f"rewind to chunk {chunk}; this walk has {self.chunk}, 0 is its start")
        assert self.now is not None
        back = self.now.fork()
        back.session.rewind(self.chunk - chunk)
        return self._go(back)

    def slot_save(self, slot: int) -> list[int]:
        """Keep this moment. Returns the filled slots."""
        if not 1 <= slot <= SLOTS:
            raise WorldlineError(f"slot {slot}; expected 1 to {SLOTS}")
        self.session  # noqa: B018 - raises where there is none
        assert self.now is not None
        self.slots[slot] = self.now.fork()
        return sorted(self.slots)

    def slot_go(self, slot: int) -> Place:
        """To a kept moment, which stays kept."""
        if slot not in self.slots:
            raise WorldlineError(f"slot {slot} is empty; filled: {sorted(self.slots)}")
        return self._go(self.slots[slot] if slot == UNDO else self.slots[slot].fork())

    def save(self) -> Path:
        """The walk as a file that any server with this world reads, at a call a chunk."""
        path = self.folder.new("safetensors")
        self.session.save(path, latents=True)
        return path

    def load(self, file: str, watch: bool, id: int | None) -> tuple[Place, Script | None]:
        """An uploaded walk at its end, or at its beginning with the script that walks it again."""
        path = self.folder.find(file, "safetensors")
        log = read_walk(path, self.engine)
        if not watch:
            return self._go(Moment(Session.load(self.engine, path), None)), None
        begun = Moment(self.engine.session(log.image, log.prompts[0].text, log.seed), None)
        prompts = {p.at: p for p in log.prompts[1:]}
        chunks: deque[Act] = deque((controls, prompts.get(i)) for i, controls in enumerate(log.controls))
        return self._go(begun), Script(id, chunks, yields=False)

    def trajectory(self, actions: str, id: int | None) -> Script:
        """A trajectory string as chunks; the last one is filled up with standing still."""
        spec, n = self.engine.spec, self.engine.frames_per_chunk
        told = parse_trajectory(actions)
        if told.latents > MAX_LATENTS:
            raise WorldlineError(f"a trajectory of {told.latents} latent frames; expected at most {MAX_LATENTS}")
        controls = told.controls(spec.stride, spec.turn_deg_per_frame * spec.stride)
        if controls.move[:, 1].any() or controls.look[:, 1].any():
            raise WorldlineError("this world is walked on its floor and turned to the sides: leave u, dn, i and k out")
        controls = Controls.concat([controls, Controls.still(-len(controls) % n)])
        chunks: deque[Act] = deque((controls[i : i + n], None) for i in range(0, len(controls), n))
        return Script(id, chunks, yields=True)

    def set_prompt(self, text: str, mode: PromptMode | None) -> str:
        """Go on under another prompt. Returns the one in force."""
        self.session.set_prompt(text, mode or PROMPT_MODES[0])
        return self.session.prompt

    def step(self, controls: Controls, prompt: Prompt | None = None) -> np.ndarray:
        """One chunk: frames uint8 [n, H, W, 3]."""
        if prompt is not None:
            self.session.set_prompt(prompt.text, prompt.mode, prompt.chunks)
        return self.session.step(controls)

    def revise(self, controls: Controls) -> np.ndarray:
        """The chunk that was made last, under other controls."""
        return self.session.revise(controls)

    def commit(self) -> None:
        """Write the chunk into the past, after its frames went out."""
        self.session.commit()

    def _go(self, moment: Moment) -> Place:
        if self.now is not None:
            self.slots[UNDO] = self.now
        self.now = moment
        return self.place()


def read_walk(path: Path, engine: Engine) -> SessionLog:
    """A file of `Session.save` from a stranger. Raises WorldlineError on all that this world could not have written."""
    log, c = SessionLog.read(path, engine.weights), engine.config
    good = (
        log.image.shape == (c.height, c.width, 3)
        and 0 <= log.seed < 2**63
        and len(log) <= MAX_CHUNKS
        and all(len(rows) == engine.frames_per_chunk for rows in log.controls)
        and all(np.abs(r.move).max() <= 1 and np.abs(r.look).max() <= 360 for r in log.controls)
        and not any(r.look[:, 2].any() for r in log.controls)
        and all(len(p.text) <= MAX_PROMPT for p in log.prompts)
    )
    if not good:
        raise WorldlineError("the file is no walk through this world: sizes, controls or prompts are not possible here")
    return log


def facts(engine: Engine) -> dict[str, Any]:
    """The hello message of a world, without what differs between connections."""
    from importlib.metadata import version

    from worldline.control.actions import CODES, NAMES
    from worldline.serve.pictures import MAX_PIXELS, codecs_for, h264_string
    from worldline.serve.protocol import VERSION

    spec = engine.spec
    return {
        "type": "hello", "version": VERSION, "server": version("worldline"), "world": spec.name, "fps": spec.fps,
        "height": spec.height, "width": spec.width, "frames_per_chunk": spec.frames_per_chunk,
        "frames_per_latent": spec.stride, "keys": list(NAMES), "codes": CODES, "look": ["yaw"],
        "starts": [
            {"name": s.name, "caption": s.caption, "thumbnail": f"/api/starts/{s.name}.jpg"}
            for s in engine.starts.values()
        ],
        "presets": presets(spec.turn_deg_per_frame * spec.stride, spec.fps / spec.stride),
        "prompt_modes": list(PROMPT_MODES), "codecs": codecs_for(spec.height, spec.width),
        "h264": h264_string(spec.height, spec.width, spec.fps),
        "features": ["prompt", "upload", "step", "rewind", "slots", "record", "save", "load", "play"],
        "limits": {"prompt_chars": MAX_PROMPT, "slots": SLOTS, "image_pixels": MAX_PIXELS, "record_s": RECORD_S,
                   "messages_per_s": MESSAGES_PER_S,
                   **{f"{kind}_bytes": limit for kind, limit in UPLOADS.items()}},
    }  # fmt: skip


def presets(turn: float, latents_per_s: float) -> list[dict[str, str]]:
    """Trajectories worth trying. turn: degrees a latent of a held turn key."""
    full, quarter, two = (max(1, round(x)) for x in (360 / turn, 90 / turn, 2 * latents_per_s))
    return [
        {"name": "Look around", "actions": f"l*{full}"},
        {"name": "Walk and look back", "actions": f"w*{2 * two},l*{2 * quarter},_*{two}"},
        {"name": "There and back", "actions": f"w*{2 * two},s*{2 * two}"},
        {"name": "Round a square", "actions": ",".join([f"w*{two}", f"l*{quarter}"] * 4)},
    ]
