"""Line plots and bars as SVG text: no plotting library, colours from the page's own variables (light and dark)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 8, 34
MAX_POINTS = 400  # of a line; a longer one is averaged down


@dataclass(frozen=True)
class Line:
    """One line: x and y [n]; style names a class of the page (`s1` .. `s5`, `thin` for a reference); band: low and high
    [n] about it, for an interval."""

    label: str
    x: np.ndarray
    y: np.ndarray
    style: str = "s1"
    band: tuple[np.ndarray, np.ndarray] | None = None


def line_plot(lines: list[Line], x_label: str, y_label: str, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """An SVG element with axes, gridlines and a legend below; non-finite points break a line. Empty text where there is
    nothing finite to draw."""
    lines = [_thinned(line) for line in lines]
    finite = [(line.x[np.isfinite(line.y)], line.y[np.isfinite(line.y)]) for line in lines]
    xs, ys = (np.concatenate([pair[i] for pair in finite]) if finite else np.zeros(0) for i in (0, 1))
    if not len(xs):
        return ""
    x_ticks, y_ticks = ticks(xs.min(), xs.max()), ticks(ys.min(), ys.max())
    x0, x1 = min(xs.min(), x_ticks[0]), max(xs.max(), xs.min() + 1e-9)
    y0, y1 = y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (width - LEFT - RIGHT)

    def py(y: float) -> float:
        return TOP + (y1 - y) / (y1 - y0) * (height - TOP - BOTTOM)

    parts = [
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">'
    ]
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py(y) + 3.5:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in (x for x in x_ticks if x0 <= x <= x1):
        parts.append(f'<text x="{px(x):.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">{_number(x)}</text>')
    parts.append(f'<text x="{width - RIGHT}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="{LEFT - 34}" y="{height - 4}">{escape(y_label)}</text>')
    for line in lines:
        if line.band is not None:
            low, high = (np.clip(edge, y0, y1) for edge in line.band)
            told = np.isfinite(low) & np.isfinite(high)
            edge = [f"{px(x):.1f},{py(y):.1f}" for x, y in zip(line.x[told], high[told], strict=True)]
            edge += [f"{px(x):.1f},{py(y):.1f}" for x, y in zip(line.x[told][::-1], low[told][::-1], strict=True)]
            parts.append(f'<polygon class="{line.style}" points="{" ".join(edge)}"/>')
    for line in lines:
        parts += [f'<polyline class="{line.style}" points="{points}"/>' for points in _runs(line, px, py)]
    parts.append("</svg>")
    return "".join(parts) + _legend(lines)


def map_plot(
    walls: list[tuple[float, float, float, float]], paths: list[tuple[str, np.ndarray, str]], *, width: int = WIDTH
) -> str:
    """Seen from above. walls: segments x1, y1, x2, y2; paths: (label, [F, 2] positions, style), each with a dot where it
    starts. Shows the paths' surroundings, equal scales, north up."""
    every = np.concatenate([p for _, p, _ in paths])
    low, high = every.min(axis=0), every.max(axis=0)
    middle, half = (low + high) / 2, max(float((high - low).max()) * 0.6, 96.0)
    scale = width / (2 * half)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - middle[0] + half) * scale, (middle[1] + half - y) * scale

    parts = [f'<svg class="plot" viewBox="0 0 {width} {width}" role="img" aria-label="paths from above">']
    for x1, y1, x2, y2 in walls:
        if max(abs(x1 - middle[0]), abs(x2 - middle[0]), abs(y1 - middle[1]), abs(y2 - middle[1])) < half + 128:
            (ax, ay), (bx, by) = place(x1, y1), place(x2, y2)
            parts.append(f'<line class="wall" x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}"/>')
    for _, points, style in paths:
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in points))
        parts.append(f'<polyline class="{style}" points="{text}"/>')
    x, y = place(*paths[0][1][0])
    parts.append(f'<circle class="start" cx="{x:.1f}" cy="{y:.1f}" r="4"/></svg>')
    return "".join(parts) + _legend([Line(label, np.zeros(0), np.zeros(0), style) for label, _, style in paths])


def bar_plot(bars: list[tuple[str, float, str]], unit: str) -> str:
    """Horizontal bars of (label, value > 0, style), longest full width, values written beside them."""
    longest, rows = max((value for _, value, _ in bars), default=0.0), []
    for label, value, style in bars:
        share = max(100 * value / longest, 0.4) if longest > 0 else 0
        rows.append(
            f'<div class="bar"><span>{escape(label)}</span><i class="{style}" style="width:{share:.2f}%"></i>'
            f"<b>{value:,.0f} {escape(unit)}</b></div>"
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose [low, high], steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if span <= 1e-12:
        low, high = low - 0.5, high + 0.5
        span = 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _thinned(line: Line) -> Line:
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    n = math.ceil(len(x) / MAX_POINTS)
    band = None if line.band is None else tuple(np.asarray(edge, dtype=np.float64) for edge in line.band)
    if n > 1:
        whole = len(x) // n * n

        def thin(values: np.ndarray) -> np.ndarray:
            return values[:whole].reshape(-1, n).mean(axis=1)

        x, y, band = thin(x), thin(y), None if band is None else tuple(thin(edge) for edge in band)
    return Line(line.label, x, y, line.style, band)  # type: ignore[arg-type]


def _runs(line: Line, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    """Point lists of the finite stretches of a line."""
    runs: list[list[str]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if np.isfinite(y):
            runs[-1].append(f"{px(x):.1f},{py(y):.1f}")
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def _legend(lines: list[Line]) -> str:
    if len(lines) < 2:
        return ""
    items = "".join(f'<span><i class="{line.style}"></i>{escape(line.label)}</span>' for line in lines)
    return f'<div class="legend">{items}</div>'


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
