"""Line charts as SVG: a few hundred bytes of text beside their points, readable on a phone.

    x, y → the drawing's 440 × 280 units; the y axis may be logarithmic
    ticks at 1, 2 or 5 times a power of ten, four to eight of them

Colours come from the page's style or, of a picture in a file of its own, from the picture itself; both follow the
reader's dark mode. The same numbers draw the same bytes. Knows nothing about runs.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 280
_LEFT, _RIGHT, _BOTTOM = 60, 10, 40
_LINE, _LETTER = 16, 6.3
"""Height of a line of the legend, and the mean width of a letter."""
_LONGEST_NAME = 52
"""Of the legend; a longer one keeps its end, where folders differ."""
MOST_POINTS = 400
_COLOURS = 6
_ALIKE = 1e-9
"""Values that differ by less of their size are drawn as one."""
_LIGHT = ("#1f5fbf", "#c2410c", "#15803d", "#9333ea", "#0e7490", "#a16207")
_DARK = ("#7db3ff", "#ff9e6b", "#6ee7a0", "#d0a2ff", "#5fd4ea", "#ecc94b")

STYLE = (
    ".chart{font:12px system-ui,sans-serif;fill:currentColor;width:100%;height:auto}"
    ".chart .grid{stroke:currentColor;stroke-opacity:.15}.chart .axis{stroke:currentColor;stroke-opacity:.5}"
    ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round}.chart .level{stroke-width:1.5;stroke-dasharray:6 4}"
    + "".join(f".chart .c{i}{{stroke:{colour}}}.chart .f{i}{{fill:{colour}}}" for i, colour in enumerate(_LIGHT))
    + "@media(prefers-color-scheme:dark){"
    + "".join(f".chart .c{i}{{stroke:{colour}}}.chart .f{i}{{fill:{colour}}}" for i, colour in enumerate(_DARK))
    + "}"
)
"""What charts in a page need, once."""


@dataclass(frozen=True, slots=True)
class Series:
    """One curve.

    Attributes:
        name: For the legend.
        points: (x, y); those that are not finite are gaps.
        colour: Number of its colour.
        has_dots: Whether points are dots on the line.
        is_line: Whether points are joined.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    has_dots: bool = False
    is_line: bool = True


@dataclass(frozen=True, slots=True)
class Level:
    """A level to compare with: a dashed line across the chart."""

    name: str
    y: float
    colour: int = 1


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies between both ends, 0 … 1."""
        low, high, value = (math.log10(each) if self.is_log else each for each in (self.low, self.high, value))
        return (value - low) / (high - low)


Place = Callable[[float, float], tuple[str, str]]
"""(x, y) → where that is in the drawing."""


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, levels: Sequence[Level] = (), is_log: bool = False
) -> str:
    """Return an SVG element, to stand in a page that has ``STYLE``; empty where there is no point to draw.

    Args:
        series: The curves.
        x_label: What is counted to the right.
        y_label: What is measured upwards.
        levels: Levels to compare with.
        is_log: Whether y is logarithmic; values that are not above 0 are then left out.
    """
    drawn = [(one, _drawable(one.points, is_log)) for one in series]
    xs = [x for _, points in drawn for x, _ in points]
    if not xs:
        return ""
    shown_levels = [level for level in levels if math.isfinite(level.y) and (level.y > 0 or not is_log)]
    ys = [y for _, points in drawn for _, y in points] + [level.y for level in shown_levels]
    x_axis, y_axis = _linear(min(xs), max(xs)), _logarithmic(min(ys), max(ys)) if is_log else _linear(min(ys), max(ys))
    legend = [(one.name, one.colour) for one, points in drawn if points]
    legend += [(level.name, level.colour) for level in shown_levels]
    lines = _legend_lines(legend)
    top = 8 + _LINE * len(lines)

    def place(x: float, y: float) -> tuple[str, str]:
        across, up = x_axis.share(x), y_axis.share(y)
        return (
            f"{_LEFT + across * (WIDTH - _LEFT - _RIGHT):.1f}",
            f"{HEIGHT - _BOTTOM - up * (HEIGHT - _BOTTOM - top):.1f}",
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">']
    parts.append(f"<title>{html.escape(y_label)} against {html.escape(x_label)}</title>")
    parts += _frame(x_axis, y_axis, place, x_label, y_label)
    parts += _legend(lines)
    for level in shown_levels:
        (x1, y), (x2, _) = place(x_axis.low, level.y), place(x_axis.high, level.y)
        parts.append(f'<line class="level c{level.colour % _COLOURS}" x1="{x1}" y1="{y}" x2="{x2}" y2="{y}"/>')
    for one, points in drawn:
        placed = [place(x, y) for x, y in points]
        if one.is_line and len(placed) > 1:
            corners = " ".join(f"{x},{y}" for x, y in placed)
            parts.append(f'<polyline class="line c{one.colour % _COLOURS}" points="{corners}"/>')
        if one.has_dots or not one.is_line or len(placed) == 1:
            radius = 3 if one.has_dots or one.is_line else 1.6
            fill = f"f{one.colour % _COLOURS}"
            parts += [f'<circle class="{fill}" cx="{x}" cy="{y}" r="{radius}"/>' for x, y in placed]
    return "".join([*parts, "</svg>"])


def as_picture(chart: str) -> bytes:
    """Return a chart as the content of an SVG file."""
    own = chart or f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg"></svg>'
    style = STYLE + ".chart{color:#222}@media(prefers-color-scheme:dark){.chart{color:#ddd;background:#161616}}"
    head, _, rest = own.partition(">")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{style}</style>{rest}\n'.encode()


def _drawable(points: Sequence[tuple[float, float]], is_log: bool) -> list[tuple[float, float]]:
    """Return the finite points, at most ``MOST_POINTS`` at equal distances, the last one among them."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not is_log)]
    if len(finite) <= MOST_POINTS:
        return finite
    return [finite[index * len(finite) // MOST_POINTS] for index in range(MOST_POINTS - 1)] + [finite[-1]]


def _linear(low: float, high: float) -> _Axis:
    size = max(abs(low), abs(high))
    if high - low <= _ALIKE * size:
        low, high = low - (size / 10 or 1.0), high + (size / 10 or 1.0)
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= max((factor for factor in (2, 5) if step * factor <= (high - low) / 4), default=1)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = tuple(step * number for number in range(first, last + 1))
    return _Axis(ticks[0], ticks[-1], ticks)


def _logarithmic(low: float, high: float) -> _Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    every = 1 + (last - first) // 6
    return _Axis(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, every)), is_log=True)


def _frame(x_axis: _Axis, y_axis: _Axis, place: Place, x_label: str, y_label: str) -> Iterable[str]:
    (left, bottom), (right, top) = place(x_axis.low, y_axis.low), place(x_axis.high, y_axis.high)
    for tick in y_axis.ticks:
        _, y = place(x_axis.low, tick)
        yield f'<line class="grid" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>'
        yield f'<text x="{float(left) - 6:.1f}" y="{float(y) + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
    for tick in x_axis.ticks:
        x, _ = place(tick, y_axis.low)
        yield f'<text x="{x}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>'
    yield f'<polyline class="axis" fill="none" points="{left},{top} {left},{bottom} {right},{bottom}"/>'
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
    halfway = (float(top) + float(bottom)) / 2
    turned = f'transform="rotate(-90 11 {halfway:.0f})"'
    yield f'<text x="11" y="{halfway:.0f}" text-anchor="middle" {turned}>{html.escape(y_label)}</text>'


def _legend_lines(entries: Sequence[tuple[str, int]]) -> list[list[tuple[float, str, int]]]:
    """Return the legend as lines of (x, name, colour), as many side by side as fit."""
    lines: list[list[tuple[float, str, int]]] = []
    x = math.inf
    for whole, colour in entries:
        name = whole if len(whole) <= _LONGEST_NAME else "…" + whole[-_LONGEST_NAME + 1 :]
        width = 24 + _LETTER * len(name)
        if x + width > WIDTH:
            lines.append([])
            x = float(_LEFT)
        lines[-1].append((x, name, colour % _COLOURS))
        x += width
    return lines


def _legend(lines: Sequence[Sequence[tuple[float, str, int]]]) -> Iterable[str]:
    for number, line in enumerate(lines):
        y = 12 + _LINE * number
        for x, name, colour in line:
            yield f'<rect class="f{colour}" x="{x:.0f}" y="{y - 6}" width="12" height="4"/>'
            yield f'<text x="{x + 16:.0f}" y="{y}">{html.escape(name)}</text>'


def _number(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.10g}" if value == round(value) else f"{value:.6f}".rstrip("0")
