"""Fills the operator's HTML templates: Jinja with everything escaped, one style for all pages, numbers for people.

Knows nothing about what the pages say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_WEB = Path(__file__).parents[2] / "web"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render_page(template: str, **values: Any) -> bytes:
    """Return a self-contained page, UTF-8.

    Args:
        template: File name under ``web/``; it inlines ``style``.
        values: What the template shows. Strings are escaped; SVG of our own passes the template's filter ``inline``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "size": readable_bytes,
        "duration": readable_seconds,
        "count": "{:,}".format,
        "short": short_number,
        "inline": Markup,
    }
    style = Markup((_WEB / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return environment.get_template(template).render(style=style, **values).encode()


def percent(share: float, digits: int = 1) -> str:
    """Return a share as a percentage: 0.0734 → 7.3 %, with a space that does not break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def short_number(figure: float) -> str:
    """Return a figure for a small cell: 0.02, 1.4, 137; what would round to 0.00 is 0."""
    if figure < 0.005:
        return "0"
    return f"{figure:.{0 if figure >= 9.95 else 1 if figure >= 0.995 else 2}f}"


def readable_bytes(count: float) -> str:
    """Return a size in the largest binary unit that leaves at least 1 of it, with three figures."""
    unit = 0
    while abs(count) >= 1024 and unit < len(_BYTE_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    digits = 0 if unit == 0 or abs(count) >= 100 else 1 if abs(count) >= 10 else 2
    return f"{count:.{digits}f} {_BYTE_UNITS[unit]}"


def readable_seconds(seconds: float) -> str:
    """Return a duration: 0.42 s, 37 s, 5 min 12 s, 3 h 07 min."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
