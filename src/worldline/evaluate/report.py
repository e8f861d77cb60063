"""A run as one HTML page that opens anywhere: no network, no script, pictures inline, light and dark."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.evaluate.films import contact_sheet
from worldline.evaluate.plots import Line, bar_plot, line_plot
from worldline.evaluate.style import CSS

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 8  # frames a row of a contact sheet
PREVIEW = 96  # frames of the response plot
RELATED = 0.3  # |correlation| ...
ANSWERS = 0.1  # ... and |gain| below which a lag is chance (the best of 15), and is not printed

KINDS = {
    "bidirectional": "bidirectional, multi-step",
    "ar_multistep": "causal, multi-step",
    "ar_fewstep": "causal, few-step",
}
TERMS = {
    "Yaw correlation, gain, lag": "The model is turned by a pseudo-random command on the spot; the turn it shows is measured "
    "frame by frame and correlated with the command. Lag is the delay of best correlation in pixel frames, gain the degrees "
    "shown for a degree asked. A perfect model: 1, 1, 0. A model that ignores its player: about 0, and no lag is given below "
    "a correlation of 0.3 or a gain of 0.1. A mirrored one: -1. A codec that turns in jumps, one a latent, holds the "
    "correlation by frame down for every model (its ceiling stands in the last rows); by latent, such jumps do not count.",
    "PSNR at 1 s": "Mean over pixel frames 13 to 16 after the start, against the simulator replayed from the same start under "
    "the same controls, on maps that were never trained on. Read it beside its ceiling (the truth through the codec) and its "
    "floors (the start repeated; the simulator under other controls).",
    "Other actions": "The same model driven by other controls, scored against the replay of the right ones. A model that "
    "listens does worse here; one that ignores its player does not.",
    "Skill": "Share of the way from the higher floor (0) to the codec's ceiling (1).",
    "First frame": "Pixels: from the request accepted to the first generated frame on the host, with encoders, cache and "
    "decoder. Denoising alone is what speed-ups are often quoted in; for a bidirectional model that is the whole clip.",
}


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The head of the page. facts: label -> value, e.g. date, commit, hardware, weights; shown in their order."""

    recipe: str
    about: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage of the run. What is empty is left out of the page.

    init: the stage whose weights this one started from, for the change it made; losses: name -> (steps [n], values [n]);
    metrics, films, commands, responses, curves: as `suite.Evaluation` has them; health: what training found, each with
    step, kind, where, seen, means, mend.
    """

    name: str
    method: str = ""
    init: str | None = None
    steps: int = 0
    seconds: float = 0.0
    weights: str = ""
    losses: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    films: list[tuple[str, np.ndarray]] = field(default_factory=list)
    commands: list[np.ndarray] = field(default_factory=list)
    responses: list[np.ndarray] = field(default_factory=list)
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    health: list[dict[str, Any]] = field(default_factory=list)


def write_report(
    path: str | Path, run_info: RunInfo, stages: list[StageReport], latency: Mapping[str, float] | None = None
) -> Path:
    """Write the page to `path` (by temporary name and rename) and return it. latency: as `latency_metrics` gives it."""
    latency = latency or {}
    body = [
        _head(run_info, stages, latency),
        _stage_table(stages),
        *(_stage(stage) for stage in stages),
        _latency(latency),
        _terms(),
    ]
    title = escape(run_info.recipe)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} - worldline report</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{CSS}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_suffix(path.suffix + ".tmp")
    tmp.write_text(page, encoding="utf-8")
    os.replace(tmp, path)
    return path


def _head(info: RunInfo, stages: list[StageReport], latency: Mapping[str, float]) -> str:
    measured = [stage for stage in stages if stage.metrics]
    last = measured[-1].metrics if measured else {}
    tiles = []
    if "yaw_corr" in last:
        ceiling = f"codec: {last['yaw_corr_codec']:.2f}" if "yaw_corr_codec" in last else "perfect is 1"
        tiles.append(_tile(f"{last['yaw_corr']:.2f}", "yaw correlation", ceiling))
    if "yaw_gain" in last:
        tiles.append(_tile(f"{last['yaw_gain']:.2f}", "yaw gain", f"lag in pixel frames: {_lag(last)}"))
    if "psnr_1s" in last:
        beside = f"start repeated: {_db(last.get('psnr_1s_frozen'))}, codec: {_db(last.get('psnr_1s_codec'))}"
        tiles.append(_tile(_db(last["psnr_1s"]), "PSNR at 1 s", beside))
    if "first_frame_ms_ar_fewstep" in latency:
        speedup = latency.get("first_frame_speedup")
        beside = f"{speedup:.1f}x sooner than bidirectional" if speedup else ""
        tiles.append(_tile(f"{latency['first_frame_ms_ar_fewstep']:,.0f} ms", "first frame", beside))
    facts = {**info.facts, **{f"weights, {s.name}": s.weights for s in stages if s.weights}}
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    about = f'<p class="soft">{escape(info.about)}</p>' if info.about else ""
    shown = f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""
    return f'<h1>{escape(info.recipe)}</h1>{about}{shown}<dl class="facts">{rows}</dl>'


def _tile(value: str, label: str, beside: str) -> str:
    return f"<div><span class='soft'>{escape(label)}</span><b>{escape(value)}</b><small>{escape(beside)}</small></div>"


def _stage_table(stages: list[StageReport]) -> str:
    if not stages:
        return ""
    heads = [
        "stage",
        "method",
        "steps",
        "time",
        "loss",
        "yaw corr",
        "yaw gain",
        "lag",
        "corr by latent",
        "PSNR 1 s",
        "other actions",
        "skill",
    ]
    by_name, rows = {stage.name: stage for stage in stages}, []
    for stage in stages:
        m, source = stage.metrics, by_name.get(stage.init or "")
        before = source.metrics if source is not None else {}
        loss = next((values[-1] for _, values in stage.losses.values() if len(values)), None)
        cells = [
            escape(stage.method),
            f"{stage.steps:,}" if stage.steps else "",
            _duration(stage.seconds) if stage.seconds else "",
            "" if loss is None else f"{loss:.4g}",
            _figure(m, before, "yaw_corr", 2),
            _figure(m, before, "yaw_gain", 2),
            _lag(m),
            _figure(m, before, "yaw_corr_latent", 2),
            _figure(m, before, "psnr_1s", 1),
            f"{m['psnr_1s_wrong_actions']:.1f}" if "psnr_1s_wrong_actions" in m else "",
            f"{m['skill_1s']:.2f}" if "skill_1s" in m else "",
        ]
        mark = ' class="last"' if stage is stages[-1] else ""
        rows.append(f"<tr{mark}><th>{escape(stage.name)}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    foot = "".join(
        f'<tr><td colspan="5">{label}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, cells in _references(stages)
    )
    head = "".join(f"<th>{h}</th>" for h in heads)
    return (
        f'<h2>Stages</h2><div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div><p><small>Small figures: the change against the stage it started from. "
        "PSNR in dB, lag in pixel frames.</small></p>"
    )


def _references(stages: list[StageReport]) -> list[tuple[str, list[str]]]:
    """The rows every model is read beside, from "yaw corr" to the last column: they belong to the episodes, not to a
    stage."""
    m = next((s.metrics for s in reversed(stages) if "psnr_1s_codec" in s.metrics), {})
    names = {
        "codec": "ceiling: the truth through the codec",
        "frozen": "floor: the start repeated",
        "simulator_other": "floor: the simulator under other controls",
    }
    rows = []
    for row, label in names.items():
        corr, gain, latent = (_figure(m, {}, f"yaw_{figure}_{row}", 2) for figure in ("corr", "gain", "corr_latent"))
        fidelity = _figure(m, {}, f"psnr_1s_{row}", 1)
        if fidelity:
            rows.append((label, [corr, gain, "", latent, fidelity, "", ""]))
    return rows


def _stage(stage: StageReport) -> str:
    film = ""
    if stage.films:
        longest = max(len(frames) for _, frames in stage.films)
        sheet = contact_sheet(stage.films, every=max(1, -(-longest // COLUMNS)), scale=3)
        film = f'<img class="film" alt="frames of {escape(stage.name)}" src="{picture(sheet)}">'
    plots = [
        ("Command and response, first episode", _response_plot(stage)),
        ("Fidelity by frame", _curve_plot(stage.curves)),
        ("Loss", _loss_plot(stage.losses)),
    ]
    shown = "".join(f"<div><h4>{title}</h4>{plot}</div>" for title, plot in plots if plot)
    health = _health(stage.health)
    if not film and not shown and not health:
        return ""
    source = f" from {escape(stage.init)}" if stage.init else ""
    spent = f", {stage.steps:,} steps in {_duration(stage.seconds)}" if stage.steps else ""
    return (
        f'<section class="stage"><header><h3>{escape(stage.name)}</h3><small>{escape(stage.method)}{source}{spent}</small>'
        f'</header>{health}{film}<div class="plots">{shown}</div></section>'
    )


def _health(findings: list[dict[str, Any]]) -> str:
    """What training found, one paragraph each; nothing where it found nothing."""
    rows = [
        f"<li><b>{escape(f['kind'])}</b> <small>{escape(f['where'])}, step {f['step']}</small><br>{escape(f['seen'])} "
        f'<span class="soft">Usually: {escape(f["means"])}</span> Mend: {escape(f["mend"])}</li>'
        for f in findings
    ]
    return f'<ul class="health">{"".join(rows)}</ul>' if rows else ""


def _response_plot(stage: StageReport) -> str:
    if not stage.commands or not stage.responses:
        return ""
    command, response = stage.commands[0][:PREVIEW], stage.responses[0][:PREVIEW]
    return line_plot(
        [
            Line("asked", np.arange(len(command)), command, "thin"),
            Line("shown", np.arange(len(response)), response, "s1"),
        ],
        "pixel frame",
        "yaw, deg a frame",
    )


def _curve_plot(curves: Mapping[str, np.ndarray]) -> str:
    names = {
        "model": ("model", "s1"),
        "codec": ("codec (ceiling)", "s3"),
        "wrong_actions": ("model, other actions", "s2"),
        "frozen": ("start repeated", "thin"),
        "simulator_other": ("simulator, other controls", "s4"),
    }
    # Frame 0 is given to everyone; only what follows tells them apart.
    lines = [
        Line(label, np.arange(1, len(curves[key])), curves[key][1:], style)
        for key, (label, style) in names.items()
        if key in curves
    ]
    return line_plot(lines, "pixel frame", "PSNR, dB")


def _loss_plot(losses: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    styles = ("s1", "s2", "s3", "s4", "s5")
    lines = [Line(n, s, v, styles[i % len(styles)]) for i, (n, (s, v)) in enumerate(losses.items())]
    return line_plot(lines, "step", "loss" if len(lines) != 1 else lines[0].label)


def _latency(latency: Mapping[str, float]) -> str:
    kinds = [kind for kind in KINDS if f"first_frame_ms_{kind}" in latency]
    if not kinds:
        return ""
    rows, base = [], kinds[0]
    for kind in kinds:
        pixels, denoise = latency[f"first_frame_ms_{kind}"], latency.get(f"first_frame_denoise_ms_{kind}")
        calls, made = latency.get(f"first_frame_calls_{kind}"), latency.get(f"first_frame_latents_{kind}")
        cells = [
            f"{calls:.0f}" if calls else "",
            f"{made:.0f}" if made else "",
            f"{pixels:,.0f} ms",
            f"{latency[f'first_frame_ms_{base}'] / pixels:.1f}x",
            f"{denoise:,.0f} ms" if denoise else "",
            f"{latency[f'first_frame_denoise_ms_{base}'] / denoise:.1f}x" if denoise else "",
        ]
        rows.append(f"<tr><th>{KINDS[kind]}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    heads = ["", "model calls", "latent frames", "first pixels", "", "denoising alone", ""]
    styles = {"bidirectional": "thin", "ar_multistep": "s2", "ar_fewstep": "s1"}
    bars = bar_plot([(KINDS[k], latency[f"first_frame_ms_{k}"], styles[k]) for k in kinds], "ms")
    return (
        f'<h2>First frame</h2>{bars}<div class="table"><table><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div><p><small>Medians after a warm-up, one clip, one machine, one "
        "run; calls and latent frames that the first frame has to wait for.</small></p>"
    )


def _terms() -> str:
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in TERMS.items())
    return f'<h2>How to read this</h2><dl class="terms">{rows}</dl>'


def _figure(metrics: Mapping[str, float], before: Mapping[str, float], key: str, digits: int) -> str:
    """A figure with its change against the stage before."""
    if key not in metrics:
        return ""
    change = f"<small>{metrics[key] - before[key]:+.{digits}f}</small>" if key in before else ""
    return f"{metrics[key]:.{digits}f}{change}"


def _lag(metrics: Mapping[str, float]) -> str:
    """Pixel frames of delay, or why there is none to tell."""
    if metrics.get("yaw_frozen") == 1:
        return "frozen"
    if "yaw_lag_frames" not in metrics:
        return ""
    related = abs(metrics.get("yaw_corr", 0.0)) >= RELATED and abs(metrics.get("yaw_gain", 0.0)) >= ANSWERS
    return f"{metrics['yaw_lag_frames']:.0f}" if related else "none"


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def picture(image: Image) -> str:
    """A picture as a data address."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
