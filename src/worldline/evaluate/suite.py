"""One model, the held-out episodes, the numbers: control response and fidelity beside ceiling and floors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from worldline.evaluate.episodes import Episode
from worldline.evaluate.fidelity import psnr, skill
from worldline.evaluate.player import Player, nominal_path, to_uint8
from worldline.evaluate.response import by_latent, control_response, cross_talk
from worldline.evaluate.yaw import expansion_between, yaw_between
from worldline.schema import CameraPath, WorldlineError

METRIC_VERSION = 1  # of every formula below; figures of two versions are not comparable
ONE_SECOND = slice(13, 17)  # pixel frames 13..16 after the start, at 16 frames a second
LATENT_LAGS = range(0, 3)  # few: there are few latents, and the best of many lags correlates by chance
HORIZONS = (4, 8, 16, 32)  # pixel frames: 0.25, 0.5, 1, 2 s


@dataclass(frozen=True)
class Evaluation:
    """metrics: flat and machine-readable; films: (label, frames uint8 [F, H, W, 3]) rows for a contact sheet; commands and
    responses: deg a frame [F] of the spin episodes, for plots; curves: mean PSNR in dB by frame, name -> [F]."""

    metrics: dict[str, float]
    films: list[tuple[str, np.ndarray]]
    commands: list[np.ndarray]
    responses: list[np.ndarray]
    curves: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate_player(player: Player, episodes: list[Episode], seed: int = 0) -> Evaluation:
    """Play both suites and measure. A figure that cannot be had (a clip shorter than its horizon, a ratio to nothing) is
    left out of `metrics`, never zero.

    Spin suite, cameras as the keys ask for: yaw_corr, yaw_gain, yaw_lag_frames, yaw_gain_right, yaw_gain_left, yaw_idle
    (turning unasked), yaw_cross_talk (growth of the view for a degree asked: turning that pushes ahead), yaw_frozen (1
    where the view never moved). Beside them the ceiling, yaw_corr_codec and yaw_gain_codec (the truth encoded and
    decoded: a codec may turn in jumps), and yaw_corr_latent, yaw_gain_latent, yaw_lag_latents (rates averaged over the
    frames of a latent, which such jumps do not touch), with their ceiling yaw_corr_latent_codec.
    Walk suite, cameras as they truly were: psnr_1s against the replay, the mean over pixel frames 13..16 after the start.
    Rows beside it: _frozen (the start repeated), _wrong_actions (this model under other controls, against the replay of
    the right ones), _simulator_other (the simulator under those), _codec (the truth encoded and decoded: the ceiling);
    skill_1s is the share of the way from the higher of the two floors (frozen, simulator_other) to the ceiling.

    Raises WorldlineError where a suite is missing.
    """
    spin, walk = ([e for e in episodes if e.suite == name] for name in ("spin", "walk"))
    if not spin or not walk:
        raise WorldlineError(
            f"{len(spin)} spin and {len(walk)} walk episodes; expected some of both, see build_episodes"
        )
    metrics, turned, commands, responses = _control(player, spin, seed)
    walked, truth, curves = _fidelity(player, walk, seed)
    for name, curve in curves.items():
        suffix = "" if name == "model" else f"_{name}"
        if len(curve) >= ONE_SECOND.stop:
            metrics[f"psnr_1s{suffix}"] = float(curve[ONE_SECOND].mean())
        metrics |= {f"psnr_frame_{h}{suffix}": float(curve[h]) for h in HORIZONS if h < len(curve)}
    if "psnr_1s" in metrics:
        floor = max(metrics["psnr_1s_frozen"], metrics["psnr_1s_simulator_other"])
        metrics["skill_1s"] = skill(metrics["psnr_1s"], floor, metrics["psnr_1s_codec"])
    metrics |= {"episodes": float(len(walk)), "metric_version": float(METRIC_VERSION)}

    films = [row for i in range(min(2, len(walk))) for row in ((f"truth {walk[i].id}", truth[i]), ("model", walked[i]))]
    films += [(f"truth {spin[0].id}", spin[0].frames[: turned.shape[1]]), ("model", turned[0])]
    shown = {k: round(v, 5) for k, v in metrics.items() if np.isfinite(v)}
    return Evaluation(shown, films, commands, responses, curves)


def _control(
    player: Player, spin: list[Episode], seed: int
) -> tuple[dict[str, float], np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Control response of the spin suite: metrics, frames [B, F, H, W, 3], commands, responses."""
    # Nobody walks here, so the walking speed is any number; frames 0 .. F - 1 need the first F - 1 controls.
    asked = [nominal_path(e.controls, e.cameras.K[0], 1.0) for e in spin]
    turned = _play(player, spin, asked, seed)
    commands = [e.controls.look[: turned.shape[1] - 1, 0].astype(np.float64) for e in spin]
    responses = [yaw_between(frames, e.cameras.K[0]) for frames, e in zip(turned, spin, strict=True)]
    growth = [expansion_between(f, e.cameras.K[0], y) for f, e, y in zip(turned, spin, responses, strict=True)]
    response = control_response(commands, responses)
    decoded = _codec_round_trip(player, np.stack([e.frames[: turned.shape[1]] for e in spin]))
    at_best = [yaw_between(frames, e.cameras.K[0]) for frames, e in zip(decoded, spin, strict=True)]
    ceiling = control_response(commands, at_best)
    stride = player.codec.grid.stride
    coarse, coarse_ceiling = (
        control_response([by_latent(u, stride) for u in commands], [by_latent(y, stride) for y in shown], LATENT_LAGS)
        for shown in (responses, at_best)
    )
    metrics = {
        "yaw_corr": response.corr,
        "yaw_gain": response.gain,
        "yaw_lag_frames": float(response.lag),
        "yaw_gain_right": response.gain_positive,
        "yaw_gain_left": response.gain_negative,
        "yaw_idle": response.idle,
        "yaw_cross_talk": cross_talk(commands, growth, response.lag),
        "yaw_frozen": float(response.frozen),
        "yaw_corr_latent": coarse.corr,
        "yaw_gain_latent": coarse.gain,
        "yaw_lag_latents": float(coarse.lag),
        "yaw_corr_codec": ceiling.corr,
        "yaw_gain_codec": ceiling.gain,
        "yaw_corr_latent_codec": coarse_ceiling.corr,
    }
    return metrics, turned, commands, responses


def _fidelity(player: Player, walk: list[Episode], seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The walk suite: frames of the model and of the truth [B, F, H, W, 3], mean PSNR by frame of every row."""
    others = [(e.other_frames, e.other_cameras) for e in walk]
    if any(frames is None or cameras is None for frames, cameras in others):
        raise WorldlineError("a walk episode has no replay under other controls; expected those of build_episodes")
    walked = _play(player, walk, [e.cameras for e in walk], seed)
    wrong = _play(player, walk, [c for _, c in others if c is not None], seed)
    F = walked.shape[1]
    truth = np.stack([e.frames[:F] for e in walk])
    rows = {
        "model": walked,
        "frozen": np.repeat(truth[:, :1], F, axis=1),
        "wrong_actions": wrong,
        "simulator_other": np.stack([f[:F] for f, _ in others if f is not None]),
        "codec": _codec_round_trip(player, truth),
    }
    return walked, truth, {name: psnr(frames, truth).mean(axis=0) for name, frames in rows.items()}


def _play(player: Player, episodes: list[Episode], cameras: list[CameraPath], seed: int) -> np.ndarray:
    return player.play(np.stack([e.frames[0] for e in episodes]), cameras, [e.caption for e in episodes], seed)


@torch.no_grad()
def _codec_round_trip(player: Player, frames: np.ndarray) -> np.ndarray:
    """What a perfect model would show: a latent model cannot beat its codec."""
    video = torch.from_numpy(frames).to(player.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    with torch.autocast(player.device.type, torch.bfloat16, enabled=player.bf16):
        return to_uint8(player.codec.decode(player.codec.encode(video)))
