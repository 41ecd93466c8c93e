"""Objects with a checksum inside, so that what a disk made of them is noticed.

    {"loss": 0.5, "rows": 3}   →   {"checked_by": "crc32", "checksum": 3735928559, "loss": 0.5, "rows": 3}

The checksum is over the canonical JSON of all other fields. An object with neither field is one of an earlier release
and taken as it is; with one of them alone it is damaged, so that a flipped bit in their names hides nothing.
CRC-32 finds every error of up to 32 bits in a row; it is no defence against people. Knows nothing about files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

CHECKED_BY, CHECKSUM = "checked_by", "checksum"
METHOD = "crc32"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object with its checksum."""
    return {**content, CHECKED_BY: METHOD, CHECKSUM: _checksum(content)}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the object without its checksum, or None where it is damaged."""
    rest = {name: value for name, value in content.items() if name not in (CHECKED_BY, CHECKSUM)}
    if len(rest) == len(content):
        return rest
    is_whole = content.get(CHECKED_BY) == METHOD and content.get(CHECKSUM) == _checksum(rest)
    return rest if is_whole else None


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
