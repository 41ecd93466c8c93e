"""Byte counts as people write and read them: ``8GiB``, ``500MB``, ``64k``.

Powers of 1024 with an i, powers of 1000 without. Knows nothing about rates or disks.
"""

from __future__ import annotations

import math
import re

from shared.errors import InvalidRequest

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Return the bytes that ``text`` names, for example 8589934592 for ``8GiB``.

    Raises:
        InvalidRequest: It is no positive size.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"size {text!r}", needed="a number with a unit, such as 8GiB, 500MB or 64k")
    number, prefix, binary = match.groups()
    scale = (1024 if binary else 1000) ** _POWERS[prefix.lower()] if prefix else 1
    size = int(float(number) * scale)
    if size < 1:
        raise InvalidRequest(f"size {text!r}", needed="at least 1 byte")
    return size


def format_enough(size: float) -> str:
    """Return ``format_bytes`` of the size rounded up to its last digit: who types it back gives enough."""
    unit = 1.0
    while size / unit >= 1024 and unit < 1024**4:
        unit *= 1024
    return format_bytes(math.ceil(10 * size / unit) / 10 * unit if unit > 1 else size)


def format_bytes(size: float) -> str:
    """Return a size in the largest binary unit that keeps it at 1 or more, for example ``3.4 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
