"""First-frame latency of the three kinds of model: same clip, same machine, same run.

Two definitions side by side. `pixels`: from the request accepted (start image and prompt on the host) to the first
generated pixel frame on the host, with encoders, caches and decoder. `denoise`: the one minWM's speed-ups are quoted in,
which times the first chunk's denoising alone; a bidirectional model has no first chunk, so its whole clip counts in both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from worldline.evaluate.episodes import Episode
from worldline.evaluate.player import Player
from worldline.schema import WorldlineError

KINDS = ("bidirectional", "ar_multistep", "ar_fewstep")


@dataclass(frozen=True)
class Latency:
    """Medians over `runs`, in milliseconds, of one kind of model; `calls`: how often it was asked before the first frame
    (a guided step asks twice); `latents`: latent frames made before the first frame can be shown."""

    kind: str
    pixels_ms: float
    denoise_ms: float
    calls: int
    latents: int
    runs: int
    threads: int  # of the CPU


def first_frame_latency(players: Mapping[str, Player], episode: Episode, *, runs: int = 3) -> list[Latency]:
    """Measure every player on one episode, one run to warm up and `runs` that count, the kinds taking turns within a run
    so that a busy moment of the machine hits all alike. On a CPU every kind gets the number of threads that serves it
    best, one or all: few tokens lose more to waiting than they gain. What is quick is measured more often. players: keys
    of KINDS, any subset.

    Raises WorldlineError on an unknown kind.
    """
    if unknown := sorted(set(players) - set(KINDS)):
        raise WorldlineError(f"latency of {unknown}; expected some of {list(KINDS)}")
    seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in players}
    many = torch.get_num_threads()
    threads = {kind: _threads(player, episode, many) for kind, player in players.items()}  # warms up, too
    for _ in range(runs):
        for kind, player in players.items():
            torch.set_num_threads(threads[kind])
            first = _pixels(player, episode)
            seen[kind].append((first, _denoise(player, episode)))
            seen[kind] += [(_pixels(player, episode), _denoise(player, episode)) for _ in range(_more(first))]
    torch.set_num_threads(many)
    rows = []
    for kind, player in players.items():
        pixels, denoise = zip(*seen[kind], strict=True)
        made = player.latents(len(episode.frames)) - 1 if player.whole_clip else player.plan.visibility.chunk
        calls = len(player.plan.sigmas) * (2 if player.plan.guidance != 1.0 else 1)
        rows.append(Latency(kind, median(pixels), median(denoise), calls, made, len(pixels), threads[kind]))
    return rows


def latency_metrics(rows: list[Latency]) -> dict[str, float]:
    """first_frame_ms_<kind> (pixels), and likewise first_frame_denoise_ms, _calls, _latents and _threads;
    first_frame_speedup (pixels) and first_frame_denoise_speedup of the few-step model over the bidirectional one, where
    both were measured."""
    by = {row.kind: row for row in rows}
    metrics = {f"first_frame_ms_{kind}": round(row.pixels_ms, 2) for kind, row in by.items()}
    metrics |= {f"first_frame_denoise_ms_{kind}": round(row.denoise_ms, 2) for kind, row in by.items()}
    metrics |= {f"first_frame_calls_{kind}": float(row.calls) for kind, row in by.items()}
    metrics |= {f"first_frame_latents_{kind}": float(row.latents) for kind, row in by.items()}
    metrics |= {f"first_frame_threads_{kind}": float(row.threads) for kind, row in by.items()}
    if "bidirectional" in by and "ar_fewstep" in by:
        slow, fast = by["bidirectional"], by["ar_fewstep"]
        metrics["first_frame_speedup"] = round(slow.pixels_ms / fast.pixels_ms, 2)
        metrics["first_frame_denoise_speedup"] = round(slow.denoise_ms / fast.denoise_ms, 2)
    return metrics


def _more(ms: float) -> int:
    """How often to repeat what took so long: a moment of a busy machine must not decide over a short measurement."""
    return min(19, int(500 / ms))


def _threads(player: Player, episode: Episode, many: int) -> int:
    """Of one thread and `many`, the number with which a first frame comes sooner."""
    if many == 1 or player.device.type != "cpu":
        _pixels(player, episode)
        return many
    times = {}
    for threads in (many, 1):
        torch.set_num_threads(threads)
        first = _pixels(player, episode)
        times[threads] = median([_pixels(player, episode) for _ in range(1 + _more(first))])
    torch.set_num_threads(many)
    return min(times, key=times.__getitem__)


def _pixels(player: Player, episode: Episode) -> float:
    """Milliseconds from the request to the first generated frame on the host."""

    def first_frame() -> None:
        frames = player.stream(episode.frames[:1], [episode.cameras], [episode.caption], show_start=False)
        next(frames)  # already on the host: nothing to wait for
        frames.close()

    return _timed(player, first_frame)


def _denoise(player: Player, episode: Episode) -> float:
    """Milliseconds of denoising before the first frame: no encoder, no cache write, no decoder."""
    request = player.request(episode.frames[:1], [episode.cameras], [episode.caption])
    if player.whole_clip:
        return _timed(player, lambda: player.sample_clip(request))
    loop, chunk = player.open_loop(request), slice(1, 1 + player.plan.visibility.chunk)
    with torch.no_grad(), torch.autocast(player.device.type, torch.bfloat16, enabled=player.bf16):
        loop.commit(request.prefix, request.cameras[:1])
        return _timed(
            player, lambda: loop.denoise(request.noise[:, chunk], request.cameras[chunk], generator=request.generator)
        )


def _timed(player: Player, work: Callable[[], object]) -> float:
    _wait(player)
    begin = time.perf_counter()
    work()
    _wait(player)
    return 1e3 * (time.perf_counter() - begin)


def _wait(player: Player) -> None:
    if player.device.type == "cuda":
        torch.cuda.synchronize(player.device)
