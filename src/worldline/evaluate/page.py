"""An evaluation as one HTML page that opens anywhere: no network, pictures inline, light and dark.

The page reads from the top down: the table with its reference rows; curves over the horizon; command and response; paths
from above; drift; speed; the worst episodes as film strips; every figure with its formula; the stamp.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.card import columns, told
from worldline.evaluate.figures import FIGURES, GROUP, QUALITY, Rows, floor_of, response
from worldline.evaluate.films import contact_sheet
from worldline.evaluate.keys_page import key_tables
from worldline.evaluate.metrics.drift import segment_means
from worldline.evaluate.metrics.motion import AXES
from worldline.evaluate.plots import Line, line_plot, map_plot
from worldline.evaluate.references import ROWS
from worldline.evaluate.report import picture
from worldline.evaluate.response import by_latent
from worldline.evaluate.runner import Plan, shown
from worldline.evaluate.score import Score
from worldline.evaluate.speed import told_where
from worldline.evaluate.statistics import resamples
from worldline.evaluate.style import CSS
from worldline.evaluate.suites import FPS, Case, level
from worldline.evaluate.truth import truth_of

STRIPS = 6  # worst episodes shown
COLUMNS = 9  # frames of a strip
SORT = """
for (const th of document.querySelectorAll("th.sorts")) th.onclick = () => {
  const body = th.closest("table").tBodies[0], i = th.cellIndex, up = th.hasAttribute("data-down");
  for (const o of th.parentNode.children) { o.removeAttribute("data-up"); o.removeAttribute("data-down"); }
  th.setAttribute(up ? "data-up" : "data-down", "");
  const key = r => { const v = parseFloat(r.cells[i].dataset.v); return isNaN(v) ? -Infinity : v; };
  [...body.rows].sort((a, b) => up ? key(a) - key(b) : key(b) - key(a)).forEach(r => body.append(r));
};
"""


def write_page(plan: Plan, results: Mapping[str, Any], rows: Rows) -> Path:
    """Write report.html under the run and return it."""
    wanted = {c.id: c for c in plan.cases()}
    body = [
        _head(results),
        _table(results),
        _horizon(rows),
        _control(rows, results),
        key_tables(rows),
        _paths(rows, wanted),
        _drift(rows),
        _speed(rows),
        _films(plan, results, wanted),
        _figures(results),
        _stamp(results),
    ]
    title = escape(f"{results['model']['name']}, {results['preset']}")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} - worldline evaluation</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{CSS}</style></head>\n<body><main>{''.join(body)}</main><script>{SORT}</script></body></html>\n"
    )
    path = plan.out / "report.html"
    tmp = path.with_suffix(".tmp")
    tmp.write_text(page, encoding="utf-8")
    os.replace(tmp, path)
    return path


# -- head and table ----------------------------------------------------------------------------------------------------


def _head(results: Mapping[str, Any]) -> str:
    model, figures = results["model"], results["figures"]["model"]
    tiles = []
    for name, label, beside in (
        ("yaw_gain", "yaw gain", "1 is exact"),
        ("yaw_corr", "yaw correlation", "by frame"),
        ("yaw_lag", "yaw lag, frames", "0 is exact"),
        ("tolerant_1s", "tolerant PSNR at 1 s", _beside(results, "tolerant_1s", "dB")),
        ("psnr_1s", "PSNR at 1 s", _beside(results, "psnr_1s", "dB")),
        ("horizon", "useful horizon, s", "until half a guess's error"),
        ("fps", "frames a second", "while evaluating"),
    ):
        if figures[name]["status"] == "ok":
            digits = results["units"][name]["digits"]
            tiles.append(
                f"<div><span class='soft'>{label}</span><b>{figures[name]['value']:.{digits}f}</b>"
                f"<small>{escape(beside)}</small></div>"
            )
    facts = {
        "episodes": f"{results['episodes']}, {results['frames']:,} frames at {FPS} a second",
        "preset": f"{results['preset']} (protocol {results['protocol']}, suite {results['suite_hash']})",
        "weights": model["weights"],
        **model["facts"],
        "machine": results["stamp"]["machine"],
        "commit": results["stamp"]["git"],
        "date": results["stamp"]["date"],
        "speed measured on": told_where(results["bench"]) if "bench" in results else "",
    }
    told_facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items() if v)
    lossy = (
        "<p><b>Lossy input:</b> its frames went through a lossy file, which alone caps PSNR.</p>"
        if model["lossy"]
        else ""
    )
    return (
        f"<h1>{escape(model['name'])}</h1><p class='soft'>Measured against the simulator that plays the same controls from "
        f"the same start, on maps that no training may use.</p>{lossy}<div class='tiles'>{''.join(tiles)}</div>"
        f"<dl class='facts'>{told_facts}</dl>"
    )


def _beside(results: Mapping[str, Any], name: str, unit: str) -> str:
    """The floor and the ceiling of a figure."""
    figures = results["figures"]
    parts = []
    for row, label in (("codec", "codec"), ("frozen", "start repeated")):
        found = figures.get(row, {}).get(name)
        if found and found["status"] == "ok":
            parts.append(f"{label}: {found['value']:.1f} {unit}")
    return ", ".join(parts)


def _table(results: Mapping[str, Any]) -> str:
    names, units = columns(results), results["units"]
    heads = "".join(
        f"<th class='sorts' title='{escape(units[n]['about'], quote=True)}'>{escape(n)}"
        f"<small>{escape(units[n]['unit']) or '&nbsp;'}</small></th>"
        for n in names
    )
    body = []
    for row, figures in results["figures"].items():
        cells = []
        for n in names:
            f = figures.get(n)
            value = "" if f is None or f["value"] is None else f["value"]
            text = "-" if f is None else told(f, units[n]["digits"])
            main, _, spread = text.partition(" ± ")
            cells.append(f"<td data-v='{value}'>{main}<small>{f'± {spread}' if spread else '&nbsp;'}</small></td>")
        mark = " class='last'" if row == "model" else ""
        name = results["rows"][row] if row == "model" else row
        body.append(f"<tr{mark}><th>{escape(name)}</th>{''.join(cells)}</tr>")
    notes = "".join(f"<dt>{escape(r)}</dt><dd>{escape(t)}</dd>" for r, t in results["rows"].items() if r != "model")
    skipped = [
        f"{escape(n)} ({escape(f['reason'])})"
        for n, f in results["figures"]["model"].items()
        if f["status"] != "ok" and n in names
    ]
    dashes = f"<p><small>Not measured for the model: {'; '.join(skipped)}.</small></p>" if skipped else ""
    return (
        f"<h2>Table</h2><div class='table'><table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(body)}</tbody>"
        f"</table></div><p><small>± is half of the 95 % bootstrap interval over episodes. A heading sorts; its title says "
        f"what the figure is.</small></p>{dashes}<details><summary>What the reference rows are</summary>"
        f"<dl class='terms'>{notes}</dl></details>"
    )


# -- curves ------------------------------------------------------------------------------------------------------------


def _band(series: list[np.ndarray]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Mean by frame of episodes [n][F] over the frames all have, and its bootstrap band."""
    F = min(len(s) for s in series)
    values = np.stack([s[:F] for s in series])
    if len(values) < 2:
        return values.mean(axis=0), None
    means = values[resamples(len(values), 200)].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return values.mean(axis=0), (low, high)


def _picked(rows: Rows, row: str, *suites: str) -> list[Score]:
    return [s for s in rows.get(row, {}).values() if s.suite in suites]


STYLES = {"model": "s1", "codec": "s3", "frozen": "thin", "other-actions": "s4", "delayed": "s2", "half-gain": "s5"}


def _curves(rows: Rows, key: str, which: tuple[str, ...], suite: str = "S7") -> list[Line]:
    lines = []
    for row in which:
        picked = _picked(rows, row, suite)
        if picked:
            mean, band = _band([s.series[key][1:] for s in picked])
            lines.append(
                Line(row, np.arange(1, len(mean) + 1) / FPS, mean, STYLES[row], band if row == "model" else None)
            )
    return lines


def _plots(plots: list[tuple[str, str]], note: str = "") -> str:
    shown_plots = "".join(f"<div><h4>{escape(title)}</h4>{plot}</div>" for title, plot in plots if plot)
    return f"<section class='stage'><div class='plots'>{shown_plots}</div>{note}</section>" if shown_plots else ""


def _horizon(rows: Rows) -> str:
    everyone = ("codec", "model", "delayed", "half-gain", "frozen", "other-actions")
    if not _picked(rows, "model", "S7"):
        return ""
    floor = _band([floor_of(s, rows)[1:] for s in _picked(rows, "model", "S7")])[0]
    tolerant = _curves(rows, "tolerant", ("codec", "model", "half-gain"))
    tolerant.append(Line("better guess", np.arange(1, len(floor) + 1) / FPS, floor, "thin"))
    return "<h2>Fidelity over the horizon</h2>" + _plots(
        [
            ("PSNR against the replay", line_plot(_curves(rows, "psnr", everyone), "seconds", "dB")),
            ("Tolerant PSNR", line_plot(tolerant, "seconds", "dB")),
            ("SSIM", line_plot(_curves(rows, "ssim", everyone), "seconds", "")),
        ],
        "<p><small>S7; bands are 95 % intervals of the mean over episodes.</small></p>",
    )


def _control(rows: Rows, results: Mapping[str, Any]) -> str:
    plots = []
    for variant, axis, unit in (("yaw", "yaw", "deg a frame"), ("yaw+forward", "forward", "growth a frame")):
        picked = [s for s in _picked(rows, "model", "S2") if s.variant == variant]
        if not picked:
            continue
        s = picked[0]
        if axis == "yaw":
            asked, seen = s.series["true_yaw"], s.series["yaw"]
        else:
            i = AXES.index(axis)
            asked, seen = (by_latent(x.series["rates"][:, i], GROUP) for x in (rows["replay"][s.case], s))
        step = 1 if axis == "yaw" else GROUP
        t = np.arange(len(asked)) * step / FPS
        found = response(picked, rows, axis, step)
        title = f"{axis}: gain {found.gain:.2f}, lag {found.lag * step} frames, correlation {found.corr:.2f}"
        plots.append(
            (title, line_plot([Line("simulator", t, asked, "thin"), Line("model", t, seen, "s1")], "seconds", unit))
        )
        if axis == "yaw":
            plots.append(("Answer to a change of yaw command", _step_plot(picked)))
    phases = results.get("lag_by_phase") or []
    note = ""
    if phases:
        said = ", ".join("none" if p is None else f"{p:.0f}" for p in phases)
        note = f"<p><small>Lag in frames by place within a chunk: {said}.</small></p>"
    return "<h2>Command and response</h2>" + _plots(plots, note) if plots else ""


def _step_plot(scores: list[Score], before: int = 4, after: int = 12) -> str:
    """Mean of the response about every change of the command, in units of the change."""
    stacks: dict[str, list[np.ndarray]] = {"simulator": [], "model": []}
    for s in scores:
        u = s.series["true_yaw"].round(1)
        for t in np.flatnonzero(np.abs(np.diff(u)) > 1) + 1:
            if t >= before and t + after <= len(u):
                change = u[t] - u[t - 1]
                for name, y in (("simulator", s.series["true_yaw"]), ("model", s.series["yaw"])):
                    stacks[name].append((y[t - before : t + after] - u[t - 1]) / change)
    if not stacks["model"]:
        return ""
    x = np.arange(-before, after)
    lines = []
    for name, style in (("simulator", "thin"), ("model", "s1")):
        mean, band = _band(stacks[name])
        lines.append(Line(name, x, mean, style, band if name == "model" else None))
    return line_plot(lines, "frames after the change", "share")


def _paths(rows: Rows, wanted: Mapping[str, Case]) -> str:
    """Where the player went by the simulator, and by what the model showed."""
    plots: list[tuple[str, str]] = []
    for s in [*_picked(rows, "model", "S5"), *_picked(rows, "model", "S7"), *_picked(rows, "model", "S2")]:
        case = wanted.get(s.case)
        if case is None or s.variant == "yaw" or len(plots) == 3:
            continue
        place = level(case.map_seed)
        replay = rows["replay"][s.case]
        paths = [
            ("simulator", _walked(case, replay, replay), "thin"),
            ("model, as seen", _walked(case, s, replay), "s1"),
        ]
        plots.append((s.case, map_plot(place.walls(), paths)))
    note = (
        "<p><small>Seen turns and steps added up; steps are scaled as the same measurement on the replay is to the "
        "simulator's own.</small></p>"
    )
    return "<h2>From above</h2>" + _plots(plots, note) if plots else ""


def _walked(case: Case, score: Score, replay: Score) -> np.ndarray:
    """Positions [F + 1, 2] in map units of the motion a row shows."""
    from worldline.evaluate.scripts import walked

    true = np.concatenate([[[case.spawn.x, case.spawn.y]], walked(case.spawn, case.controls)])
    if score is replay:
        return true
    steps = np.diff(true, axis=0)
    heading = np.deg2rad(case.spawn.angle - np.cumsum(replay.series["true_yaw"]))
    ahead = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    right = np.stack([np.sin(heading), -np.cos(heading)], axis=1)
    # How the measurement on the replay turns into map units: one factor an axis for the episode.
    seen = np.deg2rad(case.spawn.angle - np.cumsum(score.series["yaw"]))
    moves = np.zeros_like(steps)
    for axis, true_dir, seen_dir in (
        ("forward", ahead, np.stack([np.cos(seen), np.sin(seen)], axis=1)),
        ("strafe", right, np.stack([np.sin(seen), -np.cos(seen)], axis=1)),
    ):
        i = AXES.index(axis)
        truth, measured = (steps * true_dir).sum(axis=1), replay.series["rates"][:, i]
        factor = (
            float(truth @ measured / (measured @ measured))
            if measured @ measured > 0 and np.abs(truth).max() > 0.1
            else 0.0
        )
        moves += factor * score.series["rates"][:, i : i + 1] * seen_dir
    return np.concatenate([true[:1], true[:1] + np.cumsum(moves, axis=0)])


def _drift(rows: Rows) -> str:
    suite = "S11" if _picked(rows, "model", "S11") else "S7"
    if not _picked(rows, "model", suite):
        return ""
    plots = []
    for title, unit, names in (
        ("Sharpness, share of the replay's", "", ("sharpness",)),
        ("Contrast, share of the replay's", "", ("contrast",)),
        ("Level, distance from the replay", "grey levels", ("level",)),
        ("Colour, distance from the replay", "grey levels", ("cb", "cr")),
    ):
        lines = []
        for row in ("model", "codec", "frozen"):
            picked = _picked(rows, row, suite)
            if picked:
                mean, band = _band([_gap(s, rows, names, share=unit == "") for s in picked])
                lines.append(
                    Line(row, np.arange(1, len(mean) + 1), mean, STYLES[row], band if row == "model" else None)
                )
        plots.append((title, line_plot(lines, "seconds", unit)))
    return "<h2>Drift</h2>" + _plots(plots, f"<p><small>{suite}, by second.</small></p>")


def _gap(s: Score, rows: Rows, names: tuple[str, ...], share: bool) -> np.ndarray:
    own, true = (
        np.stack([segment_means(x.series["quality"][1:, QUALITY[n]], FPS) for n in names])
        for x in (s, rows["replay"][s.case])
    )
    return own[0] / np.maximum(true[0], 1e-6) if share else np.sqrt(np.square(own - true).sum(axis=0))


def _speed(rows: Rows) -> str:
    times = [s.series["step_ms"][1:] for s in rows["model"].values() if "step_ms" in s.series]
    every = np.sort(np.concatenate(times)) if times else np.zeros(0)
    if len(every) < 2:
        return ""
    frames = next(iter(rows["model"].values())).values["frames_per_step"]
    budget = 1e3 * frames / FPS
    share = np.arange(1, len(every) + 1) / len(every)
    # Few points tell a distribution; its tail is kept.
    pick = np.unique(np.concatenate([np.linspace(0, len(every) - 1, 200).astype(int), [len(every) - 1]]))
    lines = [
        Line("steps", every[pick], share[pick], "s1"),
        Line("real time", np.array([budget, budget]), np.array([0.0, 1.0]), "thin"),
    ]
    missed = 100 * float((every > budget).mean())
    note = (
        f"<p><small>{len(every):,} steps of {frames:.0f} frames, the first of each episode left out; {missed:.1f} % took longer "
        f"than the {budget:.0f} ms that real time allows. Measured while "
        "evaluating: other work may have shared the machine.</small></p>"
    )
    return "<h2>Speed</h2>" + _plots([("Time of a step, share of steps below", line_plot(lines, "ms", ""))], note)


# -- films -------------------------------------------------------------------------------------------------------------


def _films(plan: Plan, results: Mapping[str, Any], wanted: Mapping[str, Case]) -> str:
    model, strips = results["model"], []
    for entry in results["worst"][:STRIPS]:
        case = wanted[entry["case"]]
        truth = truth_of(case, plan.truth, model["height"], model["width"])
        frames = shown(plan.out, case)
        every = max(1, -(-len(frames) // COLUMNS))
        apart = np.abs(frames.astype(np.int16) - truth.frames).clip(0, 127).astype(np.uint8) * 2
        sheet = contact_sheet([("truth", truth.frames), ("model", frames), ("difference, twofold", apart)], every, 2)
        strips.append(
            f"<figure><figcaption>{escape(case.id)}: {escape(truth.caption)}; tolerant PSNR {entry['tolerant']:.1f} dB, every "
            f"{every / FPS:.2g} s</figcaption><img class='film' alt='{escape(case.id)}' src='{picture(sheet)}'></figure>"
        )
    return f"<h2>Worst episodes first</h2>{''.join(strips)}" if strips else ""


# -- everything --------------------------------------------------------------------------------------------------------


def _figures(results: Mapping[str, Any]) -> str:
    rows = []
    for f in FIGURES:
        found = results["figures"]["model"][f.name]
        why = f"<br>Skipped: {escape(found['reason'])}." if found["status"] != "ok" else ""
        rows.append(
            f"<tr><th>{f.name}</th><td>{told(found, f.digits)}</td><td>{escape(f.unit)}</td><td>{f.better}</td>"
            f"<td>{found['n'] or ''}</td><td class='about'>{escape(f.about)}{why}</td></tr>"
        )
    return (
        "<h2>Every figure</h2><div class='table'><table><thead><tr><th></th><th>model</th><th>unit</th><th>better</th>"
        f"<th>episodes</th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _stamp(results: Mapping[str, Any]) -> str:
    facts = {
        **results["stamp"],
        "seeds": results["seeds"],
        "metric version": results["metric_version"],
        "content filter": "none",
    }
    for name, tier in results["tiers"].items():
        label = "camera paths" if name == "1" else name
        if tier["status"] != "ok":
            facts[label] = f"{tier['status']}: {tier['reason']}"
            continue
        for row in (r for r in ("model", *ROWS) if r in tier):
            said = ", ".join(f"{n} {v:.3g}" for n, v in tier[row].items() if v is not None)
            facts[f"{label}, {row}"] = f"{said}, of {tier['clips']} clips"
        if "weights" in tier:
            facts[f"{label}, weights"] = tier["weights"]
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
    return f"<h2>Stamp</h2><dl class='facts'>{rows}</dl>"
