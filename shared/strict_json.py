"""Parses JSON that strangers wrote into Python values that every library takes.

Python's own parser lets half of a surrogate pair through, as an escape or as three bytes; libraries in other
languages then end with an error of their own, or not at all. Costs a second look at documents that have such escapes.
Knows nothing about models.
"""

from __future__ import annotations

import json
import re
from typing import Any

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(data: bytes | str, *, has_unique_keys: bool = False) -> Any:
    """Return the value of a JSON document in UTF-8.

    Args:
        data: The document; a byte order mark is passed over.
        has_unique_keys: Refuse objects that name a key twice: another parser may take the other value.

    Raises:
        ValueError: It is not UTF-8 or not JSON, it is nested too deeply, or a string holds half of a surrogate pair.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    try:
        document = json.loads(text, object_pairs_hook=_object_of_unique_keys if has_unique_keys else None)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a string holds half of a surrogate pair, which is not a character") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return document


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a key twice")
    return found
