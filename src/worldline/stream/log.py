"""The log of a session: everything needed to be there again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldline.schema import Controls, WorldlineError

FORMAT = "worldline-session-1"


@dataclass
class SessionLog:
    """image: uint8 [H, W, 3]; prompts: (chunk from which it holds, prompt), the first at 0; one entry of controls and
    of clean latents [n, C, H, W] a chunk."""

    image: np.ndarray
    seed: int
    prompts: list[tuple[int, str]]
    controls: list[Controls] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)

    def append(self, controls: Controls, latents: Tensor) -> None:
        """One more chunk."""
        self.controls.append(controls)
        self.latents.append(latents)

    def copy(self) -> SessionLog:
        """An independent log; entries are never written into."""
        return self.until(len(self.controls))

    def until(self, chunks: int) -> SessionLog:
        """The first `chunks` chunks and the prompts that held by then."""
        prompts = [p for p in self.prompts if p[0] <= chunks]
        return SessionLog(self.image, self.seed, prompts, self.controls[:chunks], self.latents[:chunks])

    def write(self, path: str | Path, weights: str) -> None:
        """One safetensors file, written whole or not at all; `weights` names the world it belongs to."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        controls = Controls.concat(self.controls) if self.controls else Controls.still(0)
        tensors = {
            "image": torch.from_numpy(self.image.copy()),
            "move": torch.from_numpy(controls.move.copy()),
            "look": torch.from_numpy(controls.look.copy()),
        }
        if self.latents:
            tensors["latents"] = torch.stack(self.latents)
        about = {
            "format": FORMAT,
            "weights": weights,
            "seed": self.seed,
            "prompts": self.prompts,
            "keys": controls.keys,
            "chunks": len(self.controls),
        }
        tmp = path.with_name(path.name + ".tmp")
        save_file(tensors, tmp, metadata={"session": json.dumps(about)})
        tmp.replace(path)

    @staticmethod
    def read(path: str | Path, weights: str) -> SessionLog:
        """Raises WorldlineError where the file is no session or belongs to other weights."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("session", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise WorldlineError(
                f"{path} is not readable as a session ({error}); expected a file of Session.save"
            ) from error
        if about.get("format") != FORMAT:
            raise WorldlineError(
                f"{path} has format {about.get('format')!r}; expected {FORMAT!r}, written by Session.save"
            )
        if about["weights"] != weights:
            raise WorldlineError(
                f"{path} was walked in world {about['weights']}, this one is {weights}; load it with the world it came "
                "from"
            )
        chunks = about["chunks"]
        rows = len(tensors["move"]) // max(chunks, 1)
        keys = tuple(tuple(k) for k in about["keys"])
        whole = Controls(tensors["move"].numpy(), tensors["look"].numpy(), keys)
        return SessionLog(
            tensors["image"].numpy(),
            about["seed"],
            [(at, prompt) for at, prompt in about["prompts"]],
            [whole[i * rows : (i + 1) * rows] for i in range(chunks)],
            list(tensors["latents"]) if chunks else [],
        )
