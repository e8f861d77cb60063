"""The studies as one offline page: a verdict, curves with bands, and the numbers, a section each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from worldline.evaluate.ablation import FIGURES
from worldline.evaluate.plots import Line, line_plot
from worldline.evaluate.style import CSS

TITLES = {"poses": "Exact against noisy cameras", "steps": "Fine-tuning steps", "batch": "Batch size"}
AXES = {"poses": "wrong turn of a step, degrees", "steps": "step", "batch": "batch size"}
VERDICTS = {
    "agrees": "Goes the way minWM reports.",
    "disagrees": "Goes the other way than minWM reports.",
    "not told": "Cannot be told from these runs.",
    "missing": "Not run to its end.",
}


def page(results: Mapping[str, Any]) -> str:
    """The whole document; figures that are not there are left out."""
    sections = "".join(_section(name, study, results) for name, study in results["studies"].items())
    done, wanted = len(results["runs"]), len(results["wanted"])
    preset, stamp = results["preset"], results["stamp"]
    facts = {
        "runs": f"{done} of {wanted} finished",
        "each": f"{preset['steps']} steps on clips of {preset['latents']} latents, recipe {preset['recipe']}, "
        f"{results['training']['optimizer']} at {results['training']['lr']:g}, {results['training']['schedule']}",
        "training clips": f"{results['reference']['clips']}",
        "measured on": f"{preset['episodes']} spin and {preset['episodes']} walk episodes of maps nothing trains on, averaged "
        f"weights, {preset['denoising']} denoising steps",
        "time": f"{sum(r['seconds'] for r in results['runs']) / 60:.0f} min, of which "
        f"{sum(r['validation_seconds'] for r in results['runs']) / 60:.1f} min measuring",
        "machine": f"{stamp['machine']}, torch {stamp['torch']}",
        "made": f"{stamp['date']}, worldline {stamp['worldline']} {stamp['git']}",
    }
    described = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    tiles = "".join(
        f"<div><b>{escape(study['verdict'])}</b>{escape(TITLES[name])}</div>"
        for name, study in results["studies"].items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Three studies of camera fine-tuning</title><style>{CSS}</style></head><body><main>
<h1>Three studies of camera fine-tuning</h1>
<p class="soft">What minWM's report says of cameras, steps and batch sizes, measured on the nano line: the bundled base, which
ignores cameras, is fine-tuned to follow them. Bands and brackets are 95 % intervals over seeds and episodes.</p>
<div class="tiles">{tiles}</div>
<dl class="facts">{described}</dl>
{sections}
<h2>Figures</h2>
<dl class="terms">{
        "".join(
            f"<dt>{escape(n)}{f' ({escape(u)})' if u else ''}</dt><dd>{escape(about)}</dd>"
            for n, (u, _, about) in FIGURES.items()
        )
    }</dl>
</main></body></html>
"""


def _section(name: str, study: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    drawn = {n: _plot(name, study, n, results) for n in FIGURES}
    plots = "".join(f"<div><h4>{escape(_titled(n))}</h4>{plot}</div>" for n, plot in drawn.items() if plot)
    return f"""<h2>{escape(TITLES[name])}</h2>
<p>{escape(study["claim"])}</p>
<p><strong>{escape(VERDICTS[study["verdict"]])}</strong> {escape(study["statement"])}</p>
<div class="plots">{plots}</div>
{_levels(results) if name == "poses" else ""}
{_table(study["points"], results["reference"])}
{_same_clips(study)}
{_differences(study["differences"])}"""


def _titled(name: str) -> str:
    unit = FIGURES[name][0]
    return f"{name}, {unit}" if unit else name


def _plot(name: str, study: Mapping[str, Any], figure: str, results: Mapping[str, Any]) -> str:
    points = [p for p in study["points"] if p["figures"][figure] is not None]
    if len(points) < 2:
        return ""
    x = np.array([_place(name, p, results) for p in points])
    values = [p["figures"][figure] for p in points]
    y, low, high = (np.array([v[k] for v in values], dtype=float) for k in ("value", "low", "high"))
    lines = [Line("mean of seeds", x, y, "s1", (low, high))]
    for i in range(max(len(v["by_seed"]) for v in values)):
        own = np.array([v["by_seed"][i] if i < len(v["by_seed"]) > 1 else np.nan for v in values])
        lines.append(Line(f"seed {i}", x, own, "thin"))
    there = [p for p in study.get("same_clips", []) if p["figures"][figure] is not None]
    if there:
        seen = np.array([p["figures"][figure]["value"] for p in there])
        lines.append(Line("largest at as many clips", np.array([p["value"] for p in there]), seen, "s2"))
    ends = np.array([x.min(), x.max()])
    for label, row, style in (("before training", "start", "s5"), ("codec's ceiling", "codec", "s3")):
        value = results["reference"][row]["figures"].get(figure)
        if value is not None:
            lines.append(Line(label, ends, np.array([value, value], dtype=float), style))
    return line_plot(lines, AXES[name], "")


def _place(name: str, point: Mapping[str, Any], results: Mapping[str, Any]) -> float:
    """Where a point stands on its axis: noisy cameras by how wrong they were found to be."""
    return float(results["reference"]["errors"][point["label"]]["rotation"] if name == "poses" else point["value"])


def _levels(results: Mapping[str, Any]) -> str:
    motion, rows = results["reference"]["motion"], []
    for name, level in results["levels"].items():
        found = results["reference"]["errors"][name]
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{level['rotation']:g}°</td><td>{100 * level['translation']:g} %</td>"
            f"<td>{level['scale']:g}</td><td>{found['rotation']:.2f}°</td><td>{found['translation']:.3f}</td>"
            f"<td>{found['end']:.1f}°</td></tr>"
        )
    return (
        "<div class='table'><table><thead><tr><th>level</th><th>rotation<small>a step</small></th>"
        "<th>translation<small>of a typical step</small></th><th>unit of length<small>sd of its log</small></th>"
        "<th>found: rotation</th><th>found: translation</th><th>found: attitude<small>of the last frame</small></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr><td>cameras move</td><td></td><td></td><td></td>"
        f"<td>{motion['rotation']:.2f}°</td><td>{motion['translation']:.3f}</td><td></td></tr></tfoot></table></div><p></p>"
    )


def _table(points: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(n)}<small>{escape(u)}</small></th>" for n, (u, _, _) in FIGURES.items())
    rows = "".join(
        f"<tr><th>{escape(p['label'])}</th>{''.join(_cell(p['figures'][n]) for n in FIGURES)}</tr>" for p in points
    )
    feet = "".join(
        f"<tr><td>{label}</td>{''.join(_plain(reference[row]['figures'].get(n)) for n in FIGURES)}</tr>"
        for label, row in (("before training", "start"), ("codec's ceiling", "codec"))
    )
    return (
        f"<div class='table'><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>"
        f"<tfoot>{feet}</tfoot></table></div>"
    )


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "<td>-</td>"
    return f"<td>{figure['value']:.3g}<small>{figure['low']:.3g} to {figure['high']:.3g}</small></td>"


def _plain(value: float | None) -> str:
    return "<td>-</td>" if value is None else f"<td>{value:.3g}</td>"


def _same_clips(study: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(p['label'])} <span class='soft'>(as many clips as batch {p['value']:g})</span></th>"
        f"{''.join(_cell(p['figures'][n]) for n in FIGURES)}</tr>"
        for p in study.get("same_clips", [])
    )
    if not rows:
        return ""
    head = "".join(f"<th>{escape(n)}</th>" for n in FIGURES)
    return (
        "<details open><summary>Equal steps are not equal data: the largest batch when it had seen as many clips</summary>"
        f"<div class='table'><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _differences(differences: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th>{escape(d['what'])}</th>{''.join(_cell(d['figures'][n]) for n in FIGURES)}</tr>" for d in differences
    )
    if not rows:
        return ""
    head = "".join(f"<th>{escape(n)}</th>" for n in FIGURES)
    return (
        "<details><summary>Differences on the same episodes</summary>"
        f"<div class='table'><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
