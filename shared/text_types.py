r"""Strings that every program can store and send: Unicode that UTF-8 can express, without NUL.

JSON can spell what no encoding can: ``"\ud800"`` is half of a surrogate pair. Such a string passes a parser and fails
later, where it is written to a file, a database or a response; NUL fails in paths. ``PlainText`` is for what is taken
in, and refuses both. ``ShownText`` is for what is shown (messages of errors, of jobs), and replaces both, because
showing something must not fail. Costs one pass over the string. Knows nothing about fields or HTTP.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def showable(text: str) -> str:
    """Return ``text`` with a replacement character for each character that cannot be stored or sent."""
    return _UNWRITABLE.sub(_REPLACEMENT, text)


def showable_document(document: object) -> object:
    """Return a JSON document with every string in it showable, keys too."""
    match document:
        case str():
            return showable(document)
        case list():
            return [showable_document(item) for item in document]
        case dict():
            return {showable_document(key): showable_document(value) for key, value in document.items()}
        case _:
            return document


def _refuse_unwritable(value: object) -> object:
    if isinstance(value, str) and (found := _UNWRITABLE.search(value)) is not None:
        raise ValueError(f"character U+{ord(found[0]):04X}, which is not text; needed: Unicode text without NUL")
    return value


def _show(value: object) -> object:
    return showable(value) if isinstance(value, str) else value


PlainText = Annotated[str, BeforeValidator(_refuse_unwritable), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
"""A string from outside; the JSON schema says so with a pattern, in which no surrogate can be written."""

ShownText = Annotated[str, BeforeValidator(_show)]
"""A string for people, made showable."""
