"""Work of the `codec` stage: the video autoencoder on windows of rendered clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from worldline.data.dataset import ClipDataset
from worldline.data.encode import to_video
from worldline.methods.autoencoder import AutoencoderConfig, autoencoder_loss, latent_statistics
from worldline.methods.base import Phase, Rng
from worldline.models.nano_vae import NanoVAE
from worldline.models.registry import load_model, save_model
from worldline.recipes.training import device, stage_seed, train
from worldline.recipes.workspace import Workspace
from worldline.schema import WorldlineError

STATISTICS_CLIPS = 64  # clips that latents are normalised by


class PixelWindows:
    """Windows of `frames` pixel frames at random places of random clips: float [B, F, 3, H, W] in [-1, 1]."""

    def __init__(self, clips: ClipDataset, frames: int, stride: int) -> None:
        """All pixels are held in memory as bytes. Raises WorldlineError where clips are shorter than a window."""
        self.pixels = torch.stack([torch.from_numpy(clips[i].frames) for i in range(len(clips))])  # [N, F, H, W, 3]
        self.frames, self.stride = frames, stride
        if self.pixels.shape[1] < frames:
            raise WorldlineError(f"codec.frames is {frames}; expected at most a clip's {self.pixels.shape[1]}")

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
        """Batch `step` of a seed."""
        draw = Rng(seed, step).generator("windows")
        clips = torch.randint(len(self.pixels), (batch_size,), generator=draw).tolist()
        places = (self.pixels.shape[1] - self.frames) // self.stride + 1
        starts = (torch.randint(places, (batch_size,), generator=draw) * self.stride).tolist()
        windows = [self.pixels[c, s : s + self.frames] for c, s in zip(clips, starts, strict=True)]
        return to_video(torch.stack(windows)).to(device)


class Autoencoding:
    """One network, one phase."""

    def __init__(self, options: AutoencoderConfig, model: NanoVAE) -> None:
        self.options, self.model = options, model
        self.roles = {"model": model}
        self.phases = (Phase("codec", "model", self.loss),)

    def loss(self, video: Tensor, rng: Rng) -> dict[str, Tensor]:
        """video: [B, F, 3, H, W]."""
        return autoencoder_loss(self.model, video, self.options, rng.generator("latent noise"))

    def after_step(self, step: int) -> None:
        """Nothing moves beside the model."""


def codec(ws: Workspace, directory: Path) -> dict[str, float]:
    """Train the codec, then normalise its latents by the statistics of training clips."""
    section = ws.recipe.codec
    torch.manual_seed(stage_seed(ws.recipe.seed, "codec weights", section.train.seed))
    model = NanoVAE(section.model)
    windows = PixelWindows(ws.clips().split("train"), section.frames, section.model.stride)
    last = train(ws, "codec", Autoencoding(section.options, model), "model", windows, section.train, directory)
    trained = load_model(directory / "model").to(device())
    if not isinstance(trained, NanoVAE):
        raise TypeError(f"{directory} holds a {type(trained).__name__}")
    some = torch.linspace(0, len(windows.pixels) - 1, min(STATISTICS_CLIPS, len(windows.pixels))).long()
    mean, std = latent_statistics(trained, [to_video(windows.pixels[i][None]).to(device()) for i in some.tolist()])
    trained.load_state_dict({**trained.state_dict(), "latent_mean": mean, "latent_std": std})
    save_model(trained.cpu(), directory / "model")
    return last
