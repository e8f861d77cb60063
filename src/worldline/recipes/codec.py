"""Work of the `codec` stage: the video autoencoder on windows of rendered clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from worldline import dist
from worldline.data.dataset import ClipDataset
from worldline.data.encode import to_video
from worldline.functional.warp import yaw_of
from worldline.methods.autoencoder import AutoencoderConfig, PixelBatch, autoencoder_loss, latent_statistics
from worldline.methods.base import Phase, Rng
from worldline.models.nano_vae import NanoVAE
from worldline.models.registry import load_model, save_model
from worldline.recipes.assets import located
from worldline.recipes.training import device, stage_seed, train
from worldline.recipes.workspace import Workspace
from worldline.schema import WorldlineError

STATISTICS_CLIPS = 64  # clips that latents are normalised by


class PixelWindows:
    """Windows of `frames` pixel frames at random places of random clips, with where the camera looked."""

    def __init__(self, clips: ClipDataset, frames: int, stride: int) -> None:
        """All pixels are held in memory as bytes. Raises WorldlineError where clips are shorter than a window."""
        read = [clips[i] for i in range(len(clips))]
        self.pixels = torch.stack([torch.from_numpy(c.frames) for c in read])  # [N, F, H, W, 3]
        self.yaw = torch.stack([yaw_of(torch.from_numpy(c.cameras.c2w)) for c in read])  # [N, F]
        self.K = torch.from_numpy(read[0].cameras.K[0]).float()
        self.frames, self.stride = frames, stride
        if self.pixels.shape[1] < frames:
            raise WorldlineError(f"codec.frames is {frames}; expected at most a clip's {self.pixels.shape[1]}")

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> PixelBatch:
        """Batch `step` of a seed."""
        draw = Rng(seed, step).generator("windows")
        clips = torch.randint(len(self.pixels), (batch_size,), generator=draw).tolist()
        places = (self.pixels.shape[1] - self.frames) // self.stride + 1
        starts = (torch.randint(places, (batch_size,), generator=draw) * self.stride).tolist()
        at = [(c, slice(s, s + self.frames)) for c, s in zip(clips, starts, strict=True)]
        video, yaw = (torch.stack([source[c, frames] for c, frames in at]) for source in (self.pixels, self.yaw))
        return PixelBatch(to_video(video).to(device), yaw.to(device), self.K.to(device))


class Autoencoding:
    """One network, one phase."""

    def __init__(self, options: AutoencoderConfig, model: NanoVAE) -> None:
        self.options, self.model = options, model
        self.roles = {"model": model}
        self.phases = (Phase("codec", "model", self.loss),)

    def loss(self, batch: PixelBatch, rng: Rng) -> dict[str, Tensor]:
        """The autoencoder's loss on one batch of windows."""
        return autoencoder_loss(self.model, batch, self.options, rng.generator("latent noise"))

    def after_step(self, step: int) -> None:
        """Nothing moves beside the model."""


def _initial(ws: Workspace) -> NanoVAE:
    """A fresh codec, or the one that training goes on from."""
    section = ws.recipe.codec
    if section.init is None:
        return NanoVAE(section.model)
    found = load_model(located(section.init, "codec"))
    if not isinstance(found, NanoVAE) or found.config != section.model:
        raise WorldlineError(f"codec.init: {section.init} holds {found.config}; the recipe says {section.model}")
    return found


def codec(ws: Workspace, directory: Path) -> dict[str, float]:
    """Train the codec, then normalise its latents by the statistics of training clips."""
    section = ws.recipe.codec
    torch.manual_seed(stage_seed(ws.recipe.seed, "codec weights", section.train.seed))
    model = _initial(ws)
    windows = PixelWindows(ws.clips().split("train"), section.frames, section.model.stride)
    last = train(ws, "codec", Autoencoding(section.options, model), "model", windows, section.train, directory)
    dist.on_main(lambda: _normalise(windows, directory))
    return last


def _normalise(windows: PixelWindows, directory: Path) -> None:
    """Give the trained codec the statistics of its latents."""
    trained = load_model(directory / "model").to(device())
    if not isinstance(trained, NanoVAE):
        raise TypeError(f"{directory} holds a {type(trained).__name__}")
    some = torch.linspace(0, len(windows.pixels) - 1, min(STATISTICS_CLIPS, len(windows.pixels))).long()
    mean, std = latent_statistics(trained, (to_video(windows.pixels[i][None]).to(device()) for i in some.tolist()))
    trained.load_state_dict({**trained.state_dict(), "latent_mean": mean, "latent_std": std})
    save_model(trained.cpu(), directory / "model")
