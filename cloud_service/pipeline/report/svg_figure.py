"""Matplotlib figures as SVG text: inline, in the colours of the page around them, or as a file of its own.

Text stays text (it can be searched, and is drawn in the reader's font), and there is no date in it, so equal figures
give equal bytes. Inline, ink and lines are CSS variables, so that a picture follows the page into dark mode and print.
Knows nothing about what is drawn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SERIES_COLORS = ("#2f7fc1", "#d9702b", "#2f9e6e", "#a65fc7", "#b8921f", "#d1507a", "#6b7c93")
"""Colours of data, each readable on a white and on a nearly black page."""

SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes of data points, so that no two series differ by colour alone."""

_INK, _LINE, _PAGE = "#010203", "#040506", "#070809"
_IN_A_PAGE = {_INK: "var(--ink)", _LINE: "var(--line)", _PAGE: "var(--page)"}
_ALONE = {_INK: "#1d2329", _LINE: "#c3cad1", _PAGE: "#ffffff"}
_STYLE = {
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": _PAGE,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.facecolor": _PAGE,
    "legend.framealpha": 0.85,
    "svg.fonttype": "none",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with one pair of axes in the page's style.

    Attributes:
        figure: The figure.
        axes: Where to draw.
    """

    figure: Figure
    axes: Axes


def new_drawing(width_inches: float = 4.8, height_inches: float = 3.2) -> Drawing:
    """Return empty axes. Draw with data colours from ``SERIES_COLORS`` or with ``INK``."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
        return Drawing(figure, figure.subplots())


INK = _INK
"""The page's text colour, whatever that is."""


def add_legend(drawing: Drawing, **placement: object) -> None:
    """Add a legend in the page's style; ``loc`` may lie outside of the axes."""
    with mpl.rc_context(_STYLE):
        owner = drawing.figure if str(placement.get("loc")).startswith("outside") else drawing.axes
        owner.legend(fontsize=9, **placement)


def inline_svg(drawing: Drawing, name: str, description: str) -> str:
    """Return an ``<svg>`` element for a page that defines ``--ink``, ``--line`` and ``--page``.

    Args:
        drawing: What to show.
        name: Unique on the page; it keeps the element's internal ids apart.
        description: What the picture shows, for who cannot see it.
    """
    attributes = f'<svg role="img" aria-label="{escape(description)}"'
    return _svg(drawing, name, _IN_A_PAGE).replace("<svg", attributes, 1)


def svg_file(drawing: Drawing, name: str) -> bytes:
    """Return an SVG document on a white ground."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{_svg(drawing, name, _ALONE)}'.encode()


def _svg(drawing: Drawing, name: str, colors: dict[str, str]) -> str:
    text = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.figure.savefig(text, format="svg", metadata=nothing)
    element = "<svg" + text.getvalue().partition("<svg")[2]
    for placeholder, color in colors.items():
        element = element.replace(placeholder, color)
    return element
