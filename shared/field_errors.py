"""Says in words what is wrong with a field that pydantic refused: what was found, and what was needed.

pydantic's own sentences show patterns and Python's types, and leave out the value. Costs nothing until something is
wrong. Knows nothing about HTTP or command lines: each adds its own next step, and the names that its callers use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from shared.api import PATTERNS_IN_WORDS

MAX_SHOWN_CHARACTERS = 120
"""Of a value; what is longer is cut."""

_NEEDED_SEPARATOR = "; needed: "
"""In a validator's own message: what stands before it was found, what stands after it was needed."""

_WORDS = {
    "missing": "a value for it",
    "extra_forbidden": "a field that exists",
    "string_type": "a string",
    "string_too_short": "a string of at least {min_length} characters",
    "string_too_long": "a string of at most {max_length} characters",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number that is at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number that is at most {le}",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}
"""By pydantic's type of error; the limits are filled in. Of other types its own sentence is kept."""


@dataclass(frozen=True, slots=True)
class FieldFault:
    """One thing that is wrong with a document.

    Attributes:
        field: Dotted name of the field; empty where the document as a whole is wrong.
        found: What was found there, printable and of bounded length.
        needed: What was needed, in words.
    """

    field: str
    found: str
    needed: str

    def found_in(self, name: str) -> str:
        """Return what was found, for a caller who knows the field, or the whole document, as ``name``."""
        return f"no {name}" if self.found == "" else f"{name} = {self.found}"


def first_fault(error: ValidationError) -> FieldFault:
    """Return the first thing that pydantic found wrong."""
    return describe_fault(error.errors()[0])


def describe_fault(fault: Mapping[str, Any], *, places: frozenset[str] = frozenset()) -> FieldFault:
    """Return one of pydantic's errors in words.

    Args:
        fault: An item of ``ValidationError.errors()``.
        places: First parts of a location that belong to no field, such as ``body``.
    """
    location = fault["loc"][1:] if fault["loc"] and fault["loc"][0] in places else fault["loc"]
    found = "" if fault["type"] == "missing" else shown(fault["input"])
    return FieldFault(shown_name(".".join(map(str, location))), found, _needed(fault))


def shown(value: object) -> str:
    """Return a value as JSON, printable and cut to ``MAX_SHOWN_CHARACTERS``."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return _cut(_printable(json.dumps(text, ensure_ascii=False, default=str)))


def shown_name(name: str) -> str:
    """Return a name that a stranger chose, printable and cut to ``MAX_SHOWN_CHARACTERS``."""
    return _cut(_printable(name))


def _needed(fault: Mapping[str, Any]) -> str:
    limits, kind = fault.get("ctx", {}), fault["type"]
    if kind in ("too_short", "too_long") and isinstance(fault["input"], str):
        kind = f"string_{kind}"  # pydantic counts characters as entries where a validator of ours came first
    if kind == "string_pattern_mismatch":
        return PATTERNS_IN_WORDS.get(limits["pattern"], f"text of the form {limits['pattern']}")
    if kind in _WORDS:
        return _WORDS[kind].format(**limits)
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return message.rpartition(_NEEDED_SEPARATOR)[2]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"
