"""Fills the templates of ``web/``: all escaped, style and pictures inline, no script, no reference to outside.

Knows nothing about what the pages say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from device_client.run_pages.chart import STYLE

_WEB = Path(__file__).parent / "web"


def render_page(template: str, **values: Any) -> bytes:
    """Return a self-contained page, UTF-8.

    Args:
        template: File name under ``web/``.
        values: What it shows. Strings are escaped; SVG of our own passes the filter ``inline``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = Markup
    style = Markup((_WEB / "page.css").read_text(encoding="utf-8") + STYLE)  # noqa: S704 - our own file
    return environment.get_template(template).render(style=style, **values).encode()


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
