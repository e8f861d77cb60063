"""The stages of a conversion as one offline page, and as Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.card import told
from worldline.evaluate.figures import BY_NAME, floor_of
from worldline.evaluate.films import contact_sheet
from worldline.evaluate.metrics.tolerant import FRAMES as REACH
from worldline.evaluate.plots import Line, line_plot
from worldline.evaluate.report import picture
from worldline.evaluate.runner import Plan, shown
from worldline.evaluate.stage_table import BAR, BARRED, KEPT, OPENING, REFERENCES, WHOLE
from worldline.evaluate.stages import Measured, Rows, opening_frames, part
from worldline.evaluate.style import CSS
from worldline.evaluate.suites import FPS
from worldline.evaluate.truth import truth_of

STYLES = ("s1", "s2", "s3", "s4", "s5")
NAMES = {"tolerant_ood_map": "tolerant PSNR"}
ABOUT = {
    "bidirectional": "makes a whole clip at once and takes all its controls before; it is played on openings alone",
    "opening": "the first seconds of every episode, as long as the shortest clip of a bidirectional stage; the only part "
    "on which all stages can be compared",
    "kept": "the stage's figure over the teacher's, both on the same episodes; intervals draw episodes, the same for both",
    "frames a second": "from the start image to the last frame, on the machine of the stamp, other work beside it",
}


def write_stage_page(plan: Plan, results: Mapping[str, Any], measured: list[Measured]) -> Path:
    """Write stages.html under the run and return it."""
    body = [
        _head(results),
        _table("Openings", OPENING, "opening", results),
        _table("Whole episodes", WHOLE, "whole", results),
        _kept(results),
        _curves(measured, results),
        _films(plan, measured),
        "<h2>How to read this</h2><dl class='terms'>"
        + "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in ABOUT.items())
        + "".join(f"<dt>{label(n)}</dt><dd>{escape(BY_NAME[n].about)}</dd>" for n in WHOLE)
        + "</dl>",
    ]
    title = escape(f"stages of {results['stamp'].get('run', '')}")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} - worldline evaluation</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{CSS}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )
    path = plan.out / "stages.html"
    tmp = path.with_suffix(".tmp")
    tmp.write_text(page, encoding="utf-8")
    os.replace(tmp, path)
    return path


def label(name: str) -> str:
    """A figure's name in a heading."""
    return NAMES.get(name, name.replace("_", " "))


def stage_markdown(results: Mapping[str, Any]) -> str:
    """Verdict and tables."""
    lines = [f"- {v}" for v in results["verdict"]]
    for title, names, span in (("Openings", OPENING, "opening"), ("Whole episodes", WHOLE, "whole")):
        rows = _rows(names, span, results)
        if rows:
            lines += ["", f"{title}:", "", "| stage | sampling | " + " | ".join(label(n) for n in names) + " |"]
            lines += ["|---" * (len(names) + 2) + "|"]
            lines += ["| " + " | ".join([name, how, *cells]) + " |" for name, how, cells in rows]
    lines += ["", f"Kept of {results['teacher']}, in %:", "", "| stage | " + " | ".join(label(n) for n in KEPT) + " |"]
    lines += ["|---" * (len(KEPT) + 1) + "|"]
    lines += ["| " + " | ".join([name, *cells]) + " |" for name, cells in _shares(results)]
    return "\n".join(lines) + "\n"


def _rows(names: Sequence[str], span: str, results: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(label, sampling, cells) of every stage that was played so, then of the references."""

    def cells(figures: Mapping[str, Any]) -> list[str]:
        return [told(figures[n], BY_NAME[n].digits) if n in figures else "-" for n in names]

    rows = [(r["label"], r["sampling"], cells(r[span])) for r in results["stages"] if r[span]]
    return rows + [
        (n, "", cells(results["references"][n][span])) for n in REFERENCES if rows and results["references"][n][span]
    ]


def _shares(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    out = []
    for row in results["stages"]:
        if row.get("kept"):
            cells = []
            for name in KEPT:
                k = row["kept"].get(name)
                span = "" if k is None or k["low"] is None else f" ({100 * k['low']:.0f} to {100 * k['high']:.0f})"
                cells.append("-" if k is None else f"{100 * k['value']:.0f}{span}")
            out.append((row["label"], cells))
    return out


def _head(results: Mapping[str, Any]) -> str:
    verdict = "".join(f"<li>{escape(v)}</li>" for v in results["verdict"])
    facts = {
        "episodes": f"{results['episodes']}, {results['frames']:,} frames at {FPS} a second",
        "preset": f"{results['preset']} (protocol {results['protocol']}, metrics {results['metric_version']}, suite "
        f"{results['suite_hash']})",
        "openings": f"{results['opening_seconds']:g} s" if results["opening_seconds"] else "none",
        "teacher": results["teacher"],
        **results["stamp"],
        **{f"weights, {r['label']}": r["weights"] for r in results["stages"]},
    }
    said = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items() if v)
    return (
        f"<h1>Stages of {escape(results['stamp'].get('run', ''))}</h1><p class='soft'>Every stage of one conversion on the "
        "same episodes, against the simulator that plays the same controls from the same start, on maps that no training "
        f"may use.</p><ul>{verdict}</ul><details><summary>Facts</summary><dl class='facts'>{said}</dl></details>"
    )


def _table(title: str, names: Sequence[str], span: str, results: Mapping[str, Any]) -> str:
    rows = _rows(names, span, results)
    if not rows:
        return ""
    speeds = {r["label"]: f"{r['frames_a_second']:.3g}" for r in results["stages"]}
    heads = "".join(
        f"<th title='{escape(BY_NAME[n].about, quote=True)}'>{escape(label(n))}<small>{escape(BY_NAME[n].unit) or '&nbsp;'}"
        "</small></th>"
        for n in names
    )
    body = []
    for name, how, cells in rows:
        boxes = []
        for text in cells:
            main, _, spread = text.partition(" ± ")
            boxes.append(f"<td>{main}<small>{f'± {spread}' if spread else '&nbsp;'}</small></td>")
        mark = " class='last'" if name == results["teacher"] else ""
        beside = f"<small>{escape(how)}</small>" if how else ""
        body.append(f"<tr{mark}><th>{escape(name)} {beside}</th><td>{speeds.get(name, '')}</td>{''.join(boxes)}</tr>")
    return (
        f"<h2>{title}</h2><div class='table'><table><thead><tr><th></th><th>frames a second</th>{heads}</tr></thead><tbody>"
        f"{''.join(body)}</tbody></table></div><p><small>± is half of the 95 % bootstrap interval over episodes. Marked: the "
        "teacher.</small></p>"
    )


def _kept(results: Mapping[str, Any]) -> str:
    rows = _shares(results)
    if not rows:
        return ""
    heads = "".join(f"<th>{escape(label(n))}{' *' if n in BARRED else ''}</th>" for n in KEPT)
    body = "".join(f"<tr><th>{escape(n)}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>" for n, cells in rows)
    return (
        f"<h2>Kept of {escape(results['teacher'])}, %</h2><div class='table'><table><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div><p><small>Whole episodes. * at least {100 * BAR:.0f} % is asked of few steps. A "
        "gain above 100 % is nearer to 1 than the teacher's where the teacher's is below 1.</small></p>"
    )


def _curves(measured: list[Measured], results: Mapping[str, Any]) -> str:
    """Tolerant PSNR of some by time on S7; the turn of one episode of S2, as some stages show it."""
    plots, colours = [], _drawn(measured, results["teacher"])
    for title, span in (("Openings", "opening"), ("Whole episodes", "whole")):
        lines = []
        which = [(n, rows) for m in measured if (n := m.contestant.label) in colours and (rows := getattr(m, span))]
        for name, rows in which:
            mean = _mean(rows, "model")
            if len(mean):
                lines.append(Line(name, np.arange(1, len(mean) + 1) / FPS, mean, colours[name]))
        if lines:
            floor = [floor_of(s, which[0][1])[1:] for s in which[0][1]["model"].values() if s.suite == "S7"]
            mean = np.mean([f[: min(map(len, floor))] for f in floor], axis=0)
            mean[: 2 * REACH] = np.nan  # a repeated start is the truth while tolerance reaches back to it
            lines.append(Line("better guess", np.arange(1, len(mean) + 1) / FPS, mean, "thin"))
            plots.append((f"{title}: tolerant PSNR, S7", line_plot(lines, "seconds", "dB")))
    for m in measured:
        rows = m.opening or m.whole
        turn = next((s for s in (rows or {}).get("model", {}).values() if s.suite == "S2" and s.variant == "yaw"), None)
        if turn is not None:
            t = np.arange(len(turn.series["yaw"])) / FPS
            asked = Line("simulator", t, turn.series["true_yaw"], "thin")
            plot = line_plot([asked, Line("shown", t, turn.series["yaw"], "s1")], "seconds", "deg a frame")
            plots.append((f"{m.contestant.label}: turn of {turn.case}", plot))
    drawn = "".join(f"<div><h4>{escape(title)}</h4>{plot}</div>" for title, plot in plots if plot)
    return f"<h2>Curves</h2><section class='stage'><div class='plots'>{drawn}</div></section>" if drawn else ""


def _drawn(measured: list[Measured], teacher: str) -> dict[str, str]:
    """Style of the few that a plot has room for: two bidirectional stages, the teacher, the last two."""
    labels = [m.contestant.label for m in measured]
    early = [m.contestant.label for m in measured if m.contestant.clip][-2:]
    late = [n for n in labels if n not in (*early, teacher)][-2:]
    return dict(zip([n for n in labels if n in (*early, teacher, *late)], STYLES, strict=False))


def _mean(rows: Rows, row: str) -> np.ndarray:
    series = [s.series["tolerant"][1:] for s in rows[row].values() if s.suite == "S7"]
    return np.mean([s[: min(map(len, series))] for s in series], axis=0) if series else np.zeros(0)


def _films(plan: Plan, measured: list[Measured]) -> str:
    """The first episode of each suite: the truth, then every stage as far as it went."""
    strips, seen, opening = [], set(), opening_frames([m.contestant for m in measured])
    for case in plan.cases():
        if case.suite in seen:
            continue
        seen.add(case.suite)
        rows = []
        for m in measured:
            frames = opening if m.contestant.clip else 0
            played = case.cut(frames) if frames else case
            rows.append((m.contestant.label, shown(part(plan, m.contestant.label, frames).out, played)))
        truth = truth_of(case, plan.truth, *rows[0][1].shape[1:3])
        sheet = contact_sheet([("simulator", truth.frames), *rows], max(1, -(-len(truth.frames) // 9)), 2)
        strips.append(
            f"<figure><figcaption>{escape(case.id)}: {escape(truth.caption)}</figcaption><img class='film' "
            f"alt='{escape(case.id)}' src='{picture(sheet)}'></figure>"
        )
    return f"<h2>The same episode, stage by stage</h2>{''.join(strips)}" if strips else ""
