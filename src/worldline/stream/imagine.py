"""What would be seen: many continuations of one walk, as one batch, of which none happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from worldline.schema import Cameras, Controls, ShapeError
from worldline.stream.moment import Moment, noise_of, to_uint8, to_video

if TYPE_CHECKING:
    from worldline.stream.session import Session


@dataclass(frozen=True)
class Imagined:
    """Of K continuations. latents: fp32 [K, T, C, H, W]; frames: uint8 [K, F, H, W, 3], or None where none were asked for."""

    latents: Tensor
    frames: np.ndarray | None


def imagine(session: Session, tracks: Sequence[Controls], *, frames: bool = True) -> Imagined:
    """What `session` would show under each of the tracks, whole chunks of as many rows each. The session is not changed. All
    see the noise that the session itself would draw, so they differ by their controls alone. frames: False saves decoding.

    Raises ShapeError where the tracks do not fit each other or chunks.
    """
    n, rows = session.engine.frames_per_chunk, {len(t) for t in tracks}
    if len(rows) != 1 or max(rows) % n or not max(rows):
        raise ShapeError(f"tracks of {sorted(rows)} control rows; expected one length, a multiple of {n}")
    with session._alone():
        session._commit()
        return _imagined(session._now, tracks, session._log.seed, frames)


def _imagined(now: Moment, tracks: Sequence[Controls], seed: int, wanted: bool) -> Imagined:
    engine, n, K = now.engine, now.engine.frames_per_chunk, len(tracks)
    loop, walkers = now.loop.fork(copies=K), [replace(now) for _ in tracks]
    state = tree_map_only(Tensor, lambda x: x.repeat(K, *[1] * (x.ndim - 1)), now.codec_state)
    latents, pictures = [], []
    for start in range(0, len(tracks[0]), n):
        walked = [w.walked(t[start : start + n]) for w, t in zip(walkers, tracks, strict=True)]
        host = Cameras.cat([c for _, c in walked])
        cameras = host.to(engine.device)
        for walker, (camera, _) in zip(walkers, walked, strict=True):
            walker.camera = camera
        noise, generator = noise_of(engine, seed, now.chunks + start // n, 0)
        if now.blend is not None:
            loop.set_text(now.blend.at(now.chunks + start // n).expand(K))
        loop.recall(cameras, host)
        x0 = engine.kept(loop.denoise(noise.repeat(K, 1, 1, 1, 1), cameras, generator=generator))
        latents.append(x0)
        if wanted:
            video, state = engine.codec.decode_stream(x0, state)
            pictures.append(to_uint8(video.flatten(0, 1)).reshape(K, n, *now.picture.shape))
        if start + n < len(tracks[0]):
            loop.commit(x0, cameras)
    return Imagined(torch.cat(latents, dim=1), np.concatenate(pictures, axis=1) if wanted else None)


def still_latent(session: Session, picture: np.ndarray) -> Tensor:
    """A picture uint8 [H, W, 3] as the latent of a moment of standing still before it, [C, H, W]: what imagined latents may be
    compared with."""
    engine = session.engine
    with engine.compute():
        shown = np.repeat(picture[None], 1 + engine.grid.stride, axis=0)
        return engine.kept(engine.codec.encode(to_video(shown, engine.device)))[0, 1]
