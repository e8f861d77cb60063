"""Where a walk stands, and the few things that move it: the machinery below Session, which adds the log and its promises."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldline.control.camera import CameraIntegrator
from worldline.functional.camera import cameras_of_path
from worldline.models.backbone import Backbone
from worldline.rollout.loop import ChunkLoop
from worldline.schema import CameraPath, Cameras, Controls, TextEmbedding
from worldline.stream.log import Prompt

if TYPE_CHECKING:
    from worldline.stream.engine import Engine

# Model units walked from the anchor before the cached world is moved to the player: far translations cost precision in
# the camera attention, and training clips span about one unit.
REANCHOR_AT = 4.0


@dataclass(frozen=True)
class Blend:
    """One prompt giving way to another: chunk start + i is made under the mixture (i + 1) / chunks."""

    old: TextEmbedding
    new: TextEmbedding
    start: int
    chunks: int

    def at(self, chunk: int) -> TextEmbedding:
        """The mixture for a chunk: the new prompt alone from the last one on."""
        share = min(max((chunk - self.start + 1) / self.chunks, 0.0), 1.0)
        if share == 1.0:
            return self.new
        old, new = (t.tokens * t.mask[..., None] for t in (self.old, self.new))
        return replace(self.new, tokens=old.lerp(new, share), mask=self.old.mask | self.new.mask)


@dataclass(frozen=True)
class Shown:
    """What decoding a chunk gave. frames: uint8 [n, H, W, 3]; fault: what was not finite, or nothing."""

    frames: np.ndarray
    codec_state: Any
    fault: str


@dataclass(frozen=True)
class Drawn:
    """A chunk of clean latents [1, n, C, H, W] that is not yet part of a walk; camera: after it."""

    controls: Controls
    cameras: Cameras
    camera: CameraIntegrator
    latents: Tensor
    attempt: int


@dataclass
class Moment:
    """camera, codec_state, picture (uint8 [H, W, 3]) and `chunks` are of the last chunk shown; the loop has committed it too,
    unless it is pending. Parts are replaced, never written into, but for the loop: whoever goes on from a kept moment forks
    it."""

    engine: Engine
    chunks: int
    loop: ChunkLoop
    camera: CameraIntegrator
    codec_state: Any
    picture: np.ndarray
    text: TextEmbedding  # of the last prompt
    seen: Tensor | None  # tokens of the picture that the walk started from, where the model takes them
    blend: Blend | None = None

    @staticmethod
    def begin(engine: Engine, image: np.ndarray, prompt: str, model: Backbone | None = None) -> Moment:
        """The start of a walk: the image as a committed first latent. model: in place of the engine's."""
        c, seen = engine.config, engine.seen(image)
        text = engine.text(prompt, seen)
        camera = CameraIntegrator(c.intrinsics, c.move_scale, c.walk_units_per_frame)
        loop, codec_state, picture = _started(
            engine, start_latent(engine, image), camera, text, model or engine.backbone
        )
        return Moment(engine, 0, loop, camera, codec_state, picture, text, seen)

    def fork(self) -> Moment:
        """An independent moment that goes on from here."""
        return replace(self, loop=self.loop.fork(), camera=self.camera.fork())

    # -- a chunk -------------------------------------------------------------------------------------------------------

    def walked(self, controls: Controls) -> tuple[CameraIntegrator, Cameras]:
        """The camera after a chunk's controls, and those of the chunk's latents with their motion from the one before, on the
        host."""
        camera, stride = self.camera.fork(), self.engine.grid.stride
        before = camera.pose[None]
        path = camera.extend(controls)[stride - 1 :: stride]
        whole = CameraPath(np.concatenate([before, path.c2w]), np.concatenate([path.K[:1], path.K]))
        return camera, cameras_of_path(whole)[1:]

    def draw(self, controls: Controls, seed: int, attempt: int) -> Drawn:
        """Denoise the next chunk. Its noise is a function of seed, latent index and attempt."""
        camera, cameras = self._ahead(controls)
        noise, generator = noise_of(self.engine, seed, self.chunks, attempt)
        latents = self.loop.denoise(noise, cameras, generator=generator)
        return Drawn(controls, cameras, camera, self.engine.kept(latents), attempt)

    def given(self, controls: Controls, latents: Tensor, attempt: int) -> Drawn:
        """Clean latents [1, n, C, H, W] that are known, as the next chunk."""
        camera, cameras = self._ahead(controls)
        return Drawn(controls, cameras, camera, latents, attempt)

    def _ahead(self, controls: Controls) -> tuple[CameraIntegrator, Cameras]:
        """`walked`, its cameras on the device; the loop knows what the chunk recalls and under which prompt it is made."""
        camera, host = self.walked(controls)
        cameras = host.to(self.engine.device)
        self.settle_text()
        self.loop.recall(cameras, host)
        return camera, cameras

    def shown(self, drawn: Drawn) -> Shown:
        """Decode a chunk. The one wait for the device: the frames and whether all is finite come together."""
        video, codec_state = self.engine.codec.decode_stream(drawn.latents, self.codec_state)
        finite = torch.stack([torch.isfinite(drawn.latents).all(), torch.isfinite(video).all()])
        frames = to_uint8(video[0])
        latents_good, video_good = finite.tolist()
        fault = "" if video_good else "non-finite pixels from the codec"
        return Shown(frames, codec_state, fault if latents_good else "non-finite values from the model")

    def take(self, drawn: Drawn, shown: Shown) -> None:
        """Let a chunk be the last one shown; it is still to be committed."""
        self.camera, self.codec_state, self.picture = drawn.camera, shown.codec_state, shown.frames[-1]
        self.chunks += 1

    def commit(self, drawn: Drawn) -> None:
        """Write the last chunk into the past; move the cached world to the player where he has gone far."""
        self.loop.commit(drawn.latents, drawn.cameras)
        if self.loop.model.reanchors and np.linalg.norm(self.camera.pose[:3, 3]) > REANCHOR_AT:
            camera = self.camera.fork()
            motion = torch.from_numpy(camera.rebase()).float()[None]
            self.loop.reanchor(motion.to(self.engine.device))
            self.camera = camera

    # -- prompts -------------------------------------------------------------------------------------------------------

    def settle_text(self) -> None:
        """Put the mixture of the next chunk in force, where one prompt gives way to another."""
        if self.blend is not None and self.blend.start <= self.chunks < self.blend.start + self.blend.chunks:
            self.loop.set_text(self.blend.at(self.chunks))

    def change_prompt(self, prompt: Prompt, cut: Tensor | None) -> None:
        """Let a prompt take over, as its mode says; nothing may be pending. cut: the latent that a cut starts from. The start
        image stays the one seen, but after a cut it is the picture that the walk starts again from."""
        engine = self.engine
        seen = engine.seen(self.picture) if prompt.mode == "cut" else self.seen
        text = engine.text(prompt.text, seen)
        now = self.text if self.blend is None else self.blend.at(self.chunks - 1)
        blend = None
        if prompt.mode == "cut":
            assert cut is not None
            camera = self.camera.fork()
            camera.rebase()
            self.loop, self.codec_state, _ = _started(
                engine, cut[None].to(engine.device).float(), camera, text, self.loop.model
            )
            self.camera = camera
        elif prompt.mode == "recache":
            self.loop.recache(text)
        elif prompt.mode == "blend":
            blend = Blend(now, text, self.chunks, prompt.chunks)
        else:
            self.loop.set_text(text)
        self.text, self.seen, self.blend = text, seen, blend


def noise_of(engine: Engine, seed: int, chunk: int, attempt: int) -> tuple[Tensor, torch.Generator]:
    """The noise of a chunk, [1, n, C, H, W], and the generator of what its solver draws further."""
    visibility = engine.config.visibility
    index = visibility.prefix + chunk * visibility.chunk
    digest = hashlib.sha256(f"{seed}/{index}/{attempt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    noise = torch.randn((1, visibility.chunk, *engine.latent_shape), generator=generator)
    return noise.to(engine.device), generator


def to_uint8(video: Tensor) -> np.ndarray:
    """[F, 3, H, W] in [-1, 1] -> uint8 [F, H, W, 3] on the host."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_video(frames: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [F, H, W, 3] -> [1, F, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.copy()).to(device).permute(0, 3, 1, 2)[None].float() / 127.5 - 1


def start_latent(engine: Engine, image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> the latent of a picture that a walk starts from, [1, 1, C, H, W]."""
    return engine.kept(engine.codec.encode(to_video(image[None], engine.device)))


def _started(
    engine: Engine, latent: Tensor, camera: CameraIntegrator, text: TextEmbedding, model: Backbone
) -> tuple[ChunkLoop, Any, np.ndarray]:
    """A loop whose past is one latent [1, 1, C, H, W] seen from `camera`; the codec's state and the picture after it."""
    video, codec_state = engine.codec.decode_stream(latent, None)
    c = engine.config
    negative = engine.text("") if c.guidance != 1.0 else None
    loop = ChunkLoop(model, c.plan, text, negative=negative, cache="ring")
    loop.commit(latent, cameras_of_path(CameraPath(camera.pose[None], camera.K)).to(engine.device))
    return loop, codec_state, to_uint8(video[0])[0]


EVERY = 8  # chunks between two kept moments
MOST = 16  # kept moments of a session


def kept(moments: tuple[Moment, ...], now: Moment, budget: int) -> tuple[Moment, ...]:
    """`moments` with a copy of now, where it is due, in at most `budget` bytes of keys and values: dense near the present,
    sparse long ago."""
    most = min(MOST, budget // max(now.loop.nbytes, 1))
    if now.chunks % EVERY or not most:
        return moments
    found = [*(m for m in moments if m.chunks < now.chunks), now.fork()]
    while len(found) > most and len(found) > 1:
        # The one whose neighbours are nearest to each other, as seen from now; the newest stays.
        around = [0, *(m.chunks for m in found)]
        gaps = [(around[i + 2] - around[i]) / (now.chunks - around[i + 1]) for i in range(len(found) - 1)]
        del found[gaps.index(min(gaps))]
    return tuple(found)
