"""Whether a client already has what it asks for: ``If-None-Match``, RFC 9110 sections 8.8.3 and 13.1.2.

    If-None-Match = "*" / #entity-tag        entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE

Costs one pass over the header. Knows nothing about what is served.
"""

from __future__ import annotations

import re

_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)+")


def is_unchanged(if_none_match: str | None, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names ``etag``, so that 304 is the answer.

    The comparison is the weak one, as the RFC wants it here: ``W/"a"`` and ``"a"`` are alike.

    Args:
        if_none_match: The header; several of them joined by commas. None where there is none.
        etag: What would be served, in its quotes.

    Returns:
        False also for a malformed header: it is left out of account, and everything is sent.
    """
    if if_none_match is None:
        return False
    header = if_none_match.strip(" \t")
    return header == "*" or etag.removeprefix("W/") in _opaque_tags(header)


def _opaque_tags(header: str) -> list[str]:
    """Return the tags of a list without their W/, or nothing where it is malformed."""
    tags, place = [], 0
    if (leading := _SEPARATOR.match(header)) is not None:
        place = leading.end()
    while place < len(header):
        tag = _ENTITY_TAG.match(header, place)
        if tag is None:
            return []
        tags.append(tag[1])
        place = tag.end()
        if place < len(header):
            separator = _SEPARATOR.match(header, place)
            if separator is None:
                return []
            place = separator.end()
    return tags
