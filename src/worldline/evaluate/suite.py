"""One model, the held-out episodes, the numbers: control response and fidelity beside ceiling and floors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldline.evaluate.episodes import Episode
from worldline.evaluate.fidelity import psnr
from worldline.evaluate.player import Player
from worldline.evaluate.response import control_response
from worldline.evaluate.yaw import yaw_between

ONE_SECOND = slice(13, 17)  # pixel frames 13..16 after the start, at 16 frames a second
HORIZONS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Evaluation:
    """metrics: flat and machine-readable; films: (label, frames) rows for a contact sheet; commands and responses [F] of
    the spin episodes, for plots."""

    metrics: dict[str, float]
    films: list[tuple[str, np.ndarray]]
    commands: list[np.ndarray]
    responses: list[np.ndarray]


def evaluate_player(player: Player, episodes: list[Episode], seed: int = 0) -> Evaluation:
    """yaw_corr, yaw_gain, yaw_lag_frames on the spin suite; PSNR against the replay on the walk suite.

    psnr_1s is the mean over pixel frames 13..16 after the start. Rows beside it: frozen (the start repeated),
    wrong_actions (this model driven by other controls, against the replay of the right ones), simulator_other (the
    simulator driven by those), codec (encode and decode the truth: the ceiling).
    """
    spin, walk = ([e for e in episodes if e.suite == name] for name in ("spin", "walk"))
    turned = _play(player, spin, seed)
    n = turned.shape[1] - 1
    commands = [e.controls.look[:n, 0].astype(np.float64) for e in spin]
    responses = [yaw_between(frames, e.cameras.K[0]) for frames, e in zip(turned, spin, strict=True)]
    response = control_response(commands, responses)

    right = _play(player, walk, seed)
    wrong = _play(player, walk, seed, other=True)
    F = right.shape[1]
    truth = np.stack([e.frames[:F] for e in walk])
    other = np.stack([e.other_frames[:F] for e in walk if e.other_frames is not None])
    frozen = np.repeat(truth[:, :1], F, axis=1)
    ceiling = _codec_round_trip(player, truth)
    curve = psnr(right, truth).mean(axis=0)
    metrics = {
        "yaw_corr": response.corr,
        "yaw_gain": response.gain,
        "yaw_lag_frames": float(response.lag),
        "psnr_1s": _one_second(right, truth),
        "psnr_1s_frozen": _one_second(frozen, truth),
        "psnr_1s_wrong_actions": _one_second(wrong, truth),
        "psnr_1s_simulator_other": _one_second(other, truth),
        "psnr_1s_codec": _one_second(ceiling, truth),
        **{f"psnr_frame_{h}": float(curve[h]) for h in HORIZONS if h < F},
    }
    films = [row for i in range(min(2, len(walk))) for row in ((f"truth {walk[i].id}", truth[i]), ("model", right[i]))]
    films += [row for i in range(min(1, len(spin))) for row in ((f"truth {spin[i].id}", spin[i].frames[: n + 1]), ("model", turned[i]))]
    return Evaluation({k: round(float(v), 4) for k, v in metrics.items()}, films, commands, responses)


def _play(player: Player, episodes: list[Episode], seed: int, *, other: bool = False) -> np.ndarray:
    starts = np.stack([e.frames[0] for e in episodes])
    cameras = [e.other_cameras if other and e.other_cameras is not None else e.cameras for e in episodes]
    return player.play(starts, cameras, [e.caption for e in episodes], seed)


def _one_second(frames: np.ndarray, truth: np.ndarray) -> float:
    return float(psnr(frames[:, ONE_SECOND], truth[:, ONE_SECOND]).mean())


@torch.no_grad()
def _codec_round_trip(player: Player, frames: np.ndarray) -> np.ndarray:
    video = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=player.bf16):
        codec: Any = player.codec
        out = codec.decode(codec.encode(video)).float()
    return ((out + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).numpy()
