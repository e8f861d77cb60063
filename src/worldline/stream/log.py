"""The log of a session: everything needed to be there again, and its file."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldline.schema import Controls, WorldlineError

FORMAT = "worldline-session-2"
FORMAT_1 = "worldline-session-1"
UNPACKED = 1 << 28  # bytes that a packed part of a file may unfold into
TOGETHER = 64  # chunks whose latents lie in one piece of memory
GIVEN = -1  # the attempt of a chunk that was not generated

PromptMode = Literal["keep", "recache", "cut", "blend"]


class Prompt(NamedTuple):
    """A prompt that holds from chunk `at` on, and how it took over (`Session.set_prompt`)."""

    at: int
    text: str
    mode: PromptMode = "keep"
    chunks: int = 1  # over which a `blend` takes over


@dataclass
class SessionLog:
    """image: uint8 [H, W, 3]; prompts: the first at 0; one entry of controls, of clean latents [n, C, H, W] in the compute
    type and of attempts a chunk (which draw it came from, GIVEN where it was none); cuts: by their number in `prompts`, the
    latents [1, C, H, W] that a cut started again from."""

    image: np.ndarray
    seed: int
    prompts: list[Prompt]
    controls: list[Controls] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    cuts: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.controls)

    def append(self, controls: Controls, latents: Tensor, attempt: int = 0) -> None:
        """One more chunk."""
        self.controls.append(controls)
        self.latents.append(latents)
        self.attempts.append(attempt)
        last = self.latents[-TOGETHER:]
        if len(self) % TOGETHER == 0 and len({(z.shape, z.dtype) for z in last}) == 1:
            # Small pieces that stay, among large ones that come and go, would keep a C library from reusing its memory: ten
            # times their size a chunk.
            self.latents[-TOGETHER:] = torch.stack(last).unbind()

    def copy(self) -> SessionLog:
        """An independent log; entries are never written into."""
        return self.until(len(self))

    def until(self, chunks: int) -> SessionLog:
        """The first `chunks` chunks and the prompts that held by then."""
        prompts = [p for p in self.prompts if p.at <= chunks]
        cuts = {i: latent for i, latent in self.cuts.items() if i < len(prompts)}
        return SessionLog(
            self.image, self.seed, prompts, self.controls[:chunks], self.latents[:chunks], self.attempts[:chunks], cuts
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the latents held."""
        return sum(z.nbytes for z in (*self.latents, *self.cuts.values()))

    def write(self, path: str | Path, weights: str, *, latents: bool = False, made: str = "") -> None:
        """One safetensors file, written whole or not at all; `weights` names the world it belongs to. Without `latents` those
        that were generated are left out and a digest of them is written instead: they can be generated again, where the
        same numbers are computed (`made`: how they were, in words)."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        controls = Controls.concat(self.controls) if self.controls else Controls.still(0)
        kept = [z for z, a in zip(self.latents, self.attempts, strict=True) if latents or a == GIVEN]
        about = {
            "seed": self.seed,
            "prompts": self.prompts,
            "cuts": list(self.cuts),
            "attempts": self.attempts,
            "keys": [] if not any(controls.keys) else controls.keys,
            "rows": len(controls),
            "latents": latents,
            "digest": self.digest(),
            "made": made,
        }
        tensors = {
            "image": _bytes(_png(self.image)),
            "controls": _bytes(zlib.compress(np.stack([controls.move, controls.look]).tobytes(), 9)),
            "about": _bytes(zlib.compress(json.dumps(about, separators=(",", ":")).encode(), 9)),
        }
        if kept:
            tensors["latents"] = torch.stack(kept)
        if self.cuts:
            tensors["cuts"] = torch.stack(list(self.cuts.values()))
        tmp = path.with_name(path.name + ".tmp")
        save_file(tensors, tmp, metadata={"format": FORMAT, "weights": weights})
        tmp.replace(path)

    def digest(self) -> str:
        """Of all latents: whether a walk that was generated again is the same, to the bit."""
        digest = hashlib.sha256()
        for latent in self.latents:
            digest.update(latent.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @staticmethod
    def read(path: str | Path, weights: str) -> SessionLog:
        """The log of a file; see `SavedLog.read` for what it leaves out."""
        return SavedLog.read(path, weights).log


@dataclass(frozen=True)
class SavedLog:
    """What a file holds: where `complete` is not, generated latents were left out and stand empty in the log; generated
    again they must have this digest (files of format 1 have none). made: how they were computed, in words."""

    log: SessionLog
    complete: bool
    digest: str
    made: str = ""

    @staticmethod
    def read(path: str | Path, weights: str) -> SavedLog:
        """Raises WorldlineError where the file is no session, is damaged or belongs to other weights."""
        from safetensors import SafetensorError, safe_open

        wrong = f"{path} is not readable as a session ({{}}); expected a file of Session.save"
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise WorldlineError(wrong.format(error)) from error
        try:
            old = json.loads(metadata["session"]) if "session" in metadata else {}
            made, of = old.get("format") or metadata.get("format"), old.get("weights") or metadata.get("weights")
            if made not in (FORMAT, FORMAT_1):
                raise WorldlineError(f"{path} has format {made!r}; expected {FORMAT!r}, written by Session.save")
            if of != weights:
                raise WorldlineError(
                    f"{path} was walked in world {of}, this one is {weights}; load it with the world it came from"
                )
            found = _of_format_1(tensors, old) if made == FORMAT_1 else _of_format_2(tensors)
        except WorldlineError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, StopIteration, RuntimeError, zlib.error, OSError) as error:
            raise WorldlineError(wrong.format(f"{type(error).__name__}: {error}")) from error
        if not all(torch.isfinite(z).all() for z in (*found.log.latents, *found.log.cuts.values())):
            raise WorldlineError(wrong.format("latents hold a non-finite value"))
        return found


def _of_format_2(tensors: dict[str, Tensor]) -> SavedLog:
    about = json.loads(_unpacked(tensors["about"]))
    flat = np.frombuffer(_unpacked(tensors["controls"]), np.float32).reshape(2, int(about["rows"]), 3)
    keys = tuple(tuple(str(k) for k in row) for row in about["keys"])
    attempts = [int(a) for a in about["attempts"]]
    kept, shape = iter(tensors.get("latents", torch.zeros(0))), tensors.get("latents", torch.zeros(1, 0)).shape[1:]
    complete = bool(about["latents"])
    latents = [next(kept) if complete or a == GIVEN else torch.zeros(shape) for a in attempts]
    cuts = dict(zip((int(i) for i in about["cuts"]), tensors.get("cuts", ()), strict=True))
    log = SessionLog(
        _picture(tensors["image"]),
        int(about["seed"]),
        [Prompt(int(at), str(text), _mode(mode), int(chunks)) for at, text, mode, chunks in about["prompts"]],
        _chunked(Controls(flat[0].copy(), flat[1].copy(), keys), len(attempts)),
        latents,
        attempts,
        cuts,
    )
    return SavedLog(_consistent(log), complete, str(about["digest"]), str(about.get("made", "")))


def _of_format_1(tensors: dict[str, Tensor], about: dict[str, Any]) -> SavedLog:
    chunks = int(about["chunks"])
    whole = Controls(tensors["move"].numpy(), tensors["look"].numpy(), tuple(tuple(k) for k in about["keys"]))
    log = SessionLog(
        tensors["image"].numpy(),
        int(about["seed"]),
        [Prompt(int(at), str(text)) for at, text in about["prompts"]],
        _chunked(whole, chunks),
        list(tensors["latents"]) if chunks else [],
        [0] * chunks,
    )
    return SavedLog(_consistent(log), True, "")


def _consistent(log: SessionLog) -> SessionLog:
    at = [p.at for p in log.prompts]
    if not at or at[0] != 0 or at != sorted(at) or at[-1] > len(log):
        raise WorldlineError(f"prompts from chunks {at} of {len(log)}; expected them in order, the first from 0")
    if set(log.cuts) != {i for i, p in enumerate(log.prompts) if p.mode == "cut"}:
        raise WorldlineError(f"latents of cuts {sorted(log.cuts)}; expected one of every prompt that cuts")
    if len({z.shape for z in log.latents}) > 1 or any(a < GIVEN for a in log.attempts):
        raise WorldlineError("latents of several shapes or attempts below -1; expected those of one walk")
    return log


def _chunked(controls: Controls, chunks: int) -> list[Controls]:
    rows = len(controls) // max(chunks, 1)
    if rows * chunks != len(controls):
        raise WorldlineError(f"{len(controls)} control rows for {chunks} chunks; expected as many for each")
    return [controls[i * rows : (i + 1) * rows] for i in range(chunks)]


def _mode(mode: str) -> PromptMode:
    modes: dict[str, PromptMode] = {"keep": "keep", "recache": "recache", "cut": "cut", "blend": "blend"}
    return modes[mode]


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> bytes:
    """Raises ValueError where it unfolds into more than any session holds."""
    engine = zlib.decompressobj()
    out = engine.decompress(packed.numpy().tobytes(), UNPACKED)
    if engine.unconsumed_tail:
        raise ValueError(f"a part unfolds into more than {UNPACKED} bytes")
    return out


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", optimize=True)
    return out.getvalue()


def _picture(packed: Tensor) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(packed.numpy().tobytes()), formats=("PNG",))
    if 3 * image.width * image.height > UNPACKED:
        raise ValueError(f"a picture of {image.width} x {image.height}")
    return np.asarray(image.convert("RGB"))
