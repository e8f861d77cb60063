"""The smallest suite: does the view follow the controls, and does it show what the simulator shows? For use while training.

Spin episodes (turning on the spot, nothing else) give the control response, walk episodes (true cameras) the distance from
the truth. There is no search over lags: a model in training that ignores its cameras must score 0, not the best of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldline.evaluate.episodes import Episode
from worldline.evaluate.fidelity import psnr
from worldline.evaluate.player import Player, nominal_path
from worldline.evaluate.response import control_response, cross_talk
from worldline.evaluate.yaw import expansion_between, yaw_between
from worldline.schema import ShapeError, WorldlineError

FIGURES = {  # name -> (unit, better, what it is)
    "yaw_corr": ("", "higher", "correlation of the turn shown and the turn asked for, frame by frame, no lag"),
    "yaw_gain": ("", "one", "degrees shown for a degree asked for"),
    "yaw_gain_error": ("", "lower", "|gain - 1|"),
    "cross_talk": ("%/deg", "zero", "growth of the view for a degree of turning on the spot"),
    "cross_talk_size": ("%/deg", "lower", "its size, whichever way the view is pushed"),
    "psnr": ("dB", "higher", "against the simulator along the same cameras, mean over the frames after the start"),
}
NOW = range(0, 1)


@dataclass(frozen=True)
class Validation:
    """What was measured: asked, shown [F - 1] (degrees a frame) and growth [F - 1] (fraction a frame) of every spin episode;
    psnr [walk episodes] in dB."""

    asked: list[np.ndarray]
    shown: list[np.ndarray]
    growth: list[np.ndarray]
    psnr: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.asked) == len(self.shown) == len(self.growth) > 0 or not len(self.psnr):
            raise ShapeError(
                f"{len(self.asked)} commands, {len(self.shown)} responses, {len(self.growth)} growths, {len(self.psnr)} walks: "
                "expected as many of the first three, and some of each"
            )

    def figures(self, spin: Sequence[int] | None = None, walk: Sequence[int] | None = None) -> dict[str, float]:
        """FIGURES of these episodes, of all if not said (the same one may come twice, as a bootstrap draws them)."""
        chosen = range(len(self.asked)) if spin is None else spin
        u, y, z = ([tracks[i] for i in chosen] for tracks in (self.asked, self.shown, self.growth))
        response, pushed = control_response(u, y, NOW), 100 * cross_talk(u, z, 0)
        return {
            "yaw_corr": response.corr,
            "yaw_gain": response.gain,
            "yaw_gain_error": abs(response.gain - 1),
            "cross_talk": pushed,
            "cross_talk_size": abs(pushed),
            "psnr": float(np.mean(self.psnr if walk is None else self.psnr[list(walk)])),
        }

    def to_data(self) -> dict[str, Any]:
        """Plain JSON."""
        tracks = {name: [_rounded(t) for t in getattr(self, name)] for name in ("asked", "shown", "growth")}
        return {**tracks, "psnr": _rounded(self.psnr)}

    @staticmethod
    def of_data(data: dict[str, Any]) -> Validation:
        """What `to_data` gave."""
        asked, shown, growth = ([np.array(t, dtype=float) for t in data[name]] for name in ("asked", "shown", "growth"))
        return Validation(asked, shown, growth, np.array(data["psnr"], dtype=float))


def validate(player: Player, episodes: Sequence[Episode], seed: int = 0) -> Validation:
    """Play every episode once, in the player's own way (whole clips, or chunk by chunk), and measure.

    Raises WorldlineError where spin or walk episodes are missing.
    """
    spin, walk = ([e for e in episodes if e.suite == name] for name in ("spin", "walk"))
    if not spin or not walk:
        raise WorldlineError(f"{len(spin)} spin and {len(walk)} walk episodes; expected some of both")
    asked = [nominal_path(e.controls, e.cameras.K[0], 1.0) for e in spin]  # nobody walks: the speed is any number
    turned = player.play(np.stack([e.frames[0] for e in spin]), asked, [e.caption for e in spin], seed)
    walked = player.play(
        np.stack([e.frames[0] for e in walk]), [e.cameras for e in walk], [e.caption for e in walk], seed
    )
    truth = np.stack([e.frames[: walked.shape[1]] for e in walk])
    return _measured(spin, turned, psnr(walked, truth)[:, 1:].mean(axis=1))


def ceiling(player: Player, episodes: Sequence[Episode], frames: int) -> Validation:
    """The same of a perfect model behind the player's codec: the first `frames` of every truth, encoded and decoded."""
    import torch

    from worldline.evaluate.player import to_uint8

    def through(chosen: list[Episode]) -> np.ndarray:
        video = np.stack([e.frames[:frames] for e in chosen])
        x = torch.from_numpy(video).to(player.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        with torch.no_grad(), torch.autocast(player.device.type, torch.bfloat16, enabled=player.bf16):
            return to_uint8(player.codec.decode(player.codec.encode(x)))

    spin, walk = ([e for e in episodes if e.suite == name] for name in ("spin", "walk"))
    shown = psnr(through(walk), np.stack([e.frames[:frames] for e in walk]))
    return _measured(spin, through(spin), shown[:, 1:].mean(axis=1))


def _measured(spin: Sequence[Episode], turned: np.ndarray, fidelity: np.ndarray) -> Validation:
    F = turned.shape[1]
    shown = [yaw_between(frames, e.cameras.K[0]) for frames, e in zip(turned, spin, strict=True)]
    growth = [expansion_between(f, e.cameras.K[0], y) for f, e, y in zip(turned, spin, shown, strict=True)]
    return Validation([e.controls.look[: F - 1, 0].astype(np.float64) for e in spin], shown, growth, fidelity)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 5) for v in values]
